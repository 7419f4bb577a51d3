# Every rule about doorbells, and nothing else (NVMe Base 2.0, 5.8 Doorbell Buffer Config, and
# 3.1.3.24 on the registers).
#
# A queue's doorbell value lives in one word that we read: the register's slot in the doorbell page
# (stored there by whoever takes the trapped write, or by the host itself when the page is mapped),
# or the queue's slot in the shadow buffer. The host compares its update with EventIdx and writes
# the register only when the update passed it:
#
#     (u16)(new - EventIdx - 1) < (u16)(new - old)
#
# In a queue of N entries this is true exactly when EventIdx lies in [old, new) on the ring.
#
# Awake, EventIdx is kept behind what we consumed: (head - 1) mod N. At most N - 1 entries are ever
# outstanding, so no update the host makes can reach a fresh one. Each store takes a cache line from
# the host, so it is stored again only when the host has used up half of the distance. A host with
# more than about a quarter of the ring outstanding can therefore pass a stale one and ring for
# nothing, once a lap at most; tests/model has the exact bounds. Work is never lost by it.
#
# Asleep, EventIdx is the tail itself: the very next update passes it. The host stores its tail and
# then reads EventIdx; we store EventIdx and then read the tail. With a full fence between the two on
# both sides at least one sees the other's store, so we either find the work or are rung.
#
# A completion queue's head matters to us only when the queue looks full, so its EventIdx stays right
# behind the head we last read, and is the head itself while a submission queue waits for room.

from libc.stdint cimport uint32_t

from shadowbell.dataplane.includes.cpu cimport exchange32, fence, load32, store32, swap_if32
from shadowbell.dataplane.layout cimport CompletionQueue, SubmissionQueue

cdef enum:
    POSTED = 0x80000000        # a value is in the word


cdef inline uint32_t distance(uint32_t start, uint32_t end, uint32_t entries) noexcept nogil:
    """Entries from start up to end on a ring; both are below entries."""
    return end - start if end >= start else end + entries - start


cdef inline uint32_t behind(uint32_t index, uint32_t entries) noexcept nogil:
    return (index if index else entries) - 1


cdef inline void store_eventidx(SubmissionQueue *sq, uint32_t value) noexcept nogil:
    sq.last_eventidx = value
    sq.counters.eventidx_stores += 1
    store32(sq.tail_eventidx, value)


cdef inline void stay_awake(SubmissionQueue *sq, uint32_t before, uint32_t tail) noexcept nogil:
    """Keep EventIdx out of the host's reach, after entries from before up to sq.head were consumed.

    Of a short batch it goes behind the first entry, not the last: the host may have stored the tail
    that we consumed up to and not yet have looked at EventIdx.
    """
    if sq.tail_eventidx == NULL:
        return
    if 2 * distance(sq.last_eventidx, tail, sq.entries) >= sq.entries:
        if 4 * distance(before, sq.head, sq.entries) > sq.entries:
            before = sq.head
        store_eventidx(sq, behind(before, sq.entries))


cdef inline void wake(SubmissionQueue *sq) noexcept nogil:
    """From asleep to awake: take the armed value back."""
    if sq.tail_eventidx != NULL:
        store_eventidx(sq, behind(sq.head, sq.entries))


cdef inline bint arm(SubmissionQueue *sq) noexcept nogil:
    """Ask to be rung at the next command. False: there is work already, stay awake."""
    if sq.tail_eventidx != NULL:
        sq.counters.arms += 1
        store_eventidx(sq, sq.head)
        fence()
        if load32(sq.tail_doorbell) != sq.head:
            sq.counters.arms_lost += 1
            return False
        return True
    return load32(sq.tail_doorbell) == sq.head


cdef inline void ignore_head(CompletionQueue *cq) noexcept nogil:
    """Don't ask to be rung for heads: called when cq.head was read anew.

    No more is posted than fits before the head we know, so the host's head can't come to the entry
    before it until we have read the head again.
    """
    if cq.head_eventidx != NULL:
        store32(cq.head_eventidx, behind(cq.head, cq.entries))


cdef inline void arm_completions(CompletionQueue *cq) noexcept nogil:
    """Ask to be rung when the host moves the head of a full queue; read the head again afterwards."""
    if cq.head_eventidx != NULL:
        store32(cq.head_eventidx, cq.head)
    fence()  # trapped heads too: whoever stores one looks at stalled next


cdef inline void post_register(uint32_t *slot, bint shadowed, uint32_t *posted,
                               uint32_t value) noexcept nogil:
    """A doorbell register write arrived with its value, perhaps long after the host made it.

    Unshadowed, the register is the truth. Shadowed, the queue's own thread decides (take_posted).
    """
    store32(posted if shadowed else slot, value | POSTED if shadowed else value)


cdef inline uint32_t read_slot(uint32_t *slot, bint shadowed, uint32_t *stored,
                               bint *host_stores, uint32_t *posted) noexcept nogil:
    """The doorbell's value, as the queue's own thread may believe it.

    Shadowed, the slot is the truth: a host that stores to it has stored before it rang, and perhaps a
    newer value since, so the slot must not go back to a register's. But not every host stores: Linux
    and SPDK never shadow the admin queue. Until a host is seen storing (the slot holds what we didn't
    put there), register values go into the slot. Only one thread takes and reads, so that nothing
    comes between the two.
    """
    cdef uint32_t value, old
    if shadowed:
        if load32(posted):
            value = exchange32(posted, 0) & ~(<uint32_t> POSTED)
            old = stored[0]
            if not host_stores[0]:
                if swap_if32(slot, old, value):
                    stored[0] = value
                else:
                    host_stores[0] = True
        value = load32(slot)
        if value != stored[0]:
            host_stores[0] = True
        return value
    return load32(slot)


cdef inline uint32_t read_tail(SubmissionQueue *sq) noexcept nogil:
    return read_slot(sq.tail_doorbell, sq.tail_eventidx != NULL, &sq.stored, &sq.host_stores,
                     &sq.posted)


cdef inline uint32_t read_head(CompletionQueue *cq) noexcept nogil:
    return read_slot(cq.head_doorbell, cq.head_eventidx != NULL, &cq.stored, &cq.host_stores,
                     &cq.posted)
