"""Fetching commands: from a submission queue's doorbell to commands that are under way."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from shadowbell.dataplane.commands cimport start_command
from shadowbell.dataplane.doorbells cimport (
    arm_completions,
    distance,
    ignore_head,
    read_head,
    read_tail,
    stay_awake,
)
from shadowbell.dataplane.events cimport push_event, signal_fd
from shadowbell.dataplane.includes.cpu cimport prefetch, ticks
from shadowbell.dataplane.kick cimport activate
from shadowbell.dataplane.layout cimport (
    EVENT_INVALID_VALUE,
    MAX_NAMESPACES,
    SQE_SIZE,
    CompletionQueue,
    NamespaceEntry,
    SubmissionQueue,
    ThreadState,
)
from shadowbell.dataplane.queues cimport GATHERED, latency_bucket, publish, ticks_to_ns

cdef enum:
    # Commands fetched from a queue before the next has its turn.
    BATCH = 64
    # Entries whose lines are fetched before their turn: they come from the host's processor, one by
    # one, in the time of several short commands.
    FETCH_AHEAD = 8
    # Enough for the processor's own prefetcher to go on from; more would only take its place.
    FORESEEN_LINES = 8


cdef uint32_t serve(ThreadState *thread, SubmissionQueue *sq) noexcept nogil:
    """Fetch and start what the host has submitted; returns the number of commands."""
    cdef uint8_t sqe[SQE_SIZE]
    cdef uint32_t tail, count, room, before, i
    cdef uint64_t start
    tail = read_tail(sq)
    if sq.qid == 0:
        return watch_admin(sq, tail)
    if tail == sq.head or sq.dead or not sq.reachable:
        return 0
    if tail >= sq.entries:
        sq.dead = True
        push_event(sq.engine, EVENT_INVALID_VALUE, sq.qid, 0, 0, 0, 0)
        return 0
    count = min(distance(sq.head, tail, sq.entries), <uint32_t> BATCH, thread.free_count)
    room = sq.cq.entries - 1 - distance(sq.cq.head, sq.cq.tail, sq.cq.entries)
    if room < sq.cq.reserved + count:
        room = completion_room(sq.cq)
        if room == 0:
            return 0
        count = min(count, room)
    if count == 0:
        return 0
    if sq.tail_eventidx != NULL or sq.engine.mapped:
        sq.counters.shadow_finds += 1
    sq.cq.reserved += count
    sq.inflight += count
    thread.finished_now = 0
    start = sq.cq.arrived = thread.now
    before = sq.head
    for i in range(1, min(count, <uint32_t> FETCH_AHEAD)):
        prefetch(slot(sq, i))
    for i in range(count):
        memcpy(sqe, slot(sq, 0), SQE_SIZE)
        if i + FETCH_AHEAD < count:
            prefetch(slot(sq, FETCH_AHEAD))
        sq.head += 1
        if sq.head == sq.entries:
            sq.head = 0
        if i + 1 < count:
            foresee(sq, slot(sq, 0))
        sq.cq.gather = i + GATHERED < count
        start_command(thread, sq, sqe, start, False)
    if sq.cq.gathered:
        publish(sq.cq)
    stay_awake(sq, before, tail)
    if thread.finished_now:
        thread.now = ticks()
        sq.counters.latency[latency_bucket(ticks_to_ns(thread, thread.now - start))] += (
            thread.finished_now)
    return count


cdef inline const uint8_t *slot(SubmissionQueue *sq, uint32_t ahead) noexcept nogil:
    """The entry so many after the head; fewer than there are entries."""
    cdef uint32_t index = sq.head + ahead
    if index >= sq.entries:
        index -= sq.entries
    return sq.pages[index >> 6] + ((index & 63) << 6)


cdef void foresee(SubmissionQueue *sq, const uint8_t *slot) noexcept nogil:
    """Have the first lines of a block under way that the next command will copy from memory.

    The SQE is the host's still: what is read here is a guess, checked, and used for no more.
    """
    cdef uint32_t index = (<const uint32_t *> (slot + 4))[0] - 1
    cdef uint64_t lba = (<const uint64_t *> (slot + 40))[0]
    cdef NamespaceEntry *ns
    cdef uint8_t *data
    cdef uint32_t line
    if index >= MAX_NAMESPACES:
        return
    ns = sq.engine.namespaces[index]
    if ns == NULL or ns.backend.memory == NULL or lba >= ns.blocks:
        return
    data = ns.backend.memory + (lba << ns.lba_shift)
    for line in range(FORESEEN_LINES):
        prefetch(data + 64 * line)


cdef uint32_t completion_room(CompletionQueue *cq) noexcept nogil:
    """Free slots of a queue that looks full, its head read anew; 0 leaves it armed and stalled."""
    cdef uint32_t head, room, used
    for _ in range(2):
        head = read_head(cq)
        used = distance(cq.head, cq.tail, cq.entries)
        if head >= cq.entries or distance(cq.head, head, cq.entries) > used:
            # Only a head among the entries posted makes sense; the host is told and not believed.
            if not cq.stalled:
                push_event(cq.engine, EVENT_INVALID_VALUE, cq.qid, 1, 0, 0, 0)
            cq.stalled = True
            return 0
        cq.head = head
        room = cq.entries - 1 - distance(head, cq.tail, cq.entries)
        if room > cq.reserved:
            ignore_head(cq)
            if cq.stalled:
                cq.stalled = False
                rouse(cq)
            return room - cq.reserved
        cq.stalled = True
        arm_completions(cq)
    return 0


cdef void rouse(CompletionQueue *cq) noexcept nogil:
    """There is room again: whoever found it wakes the others, whose doorbells weren't armed."""
    cdef uint32_t i
    for i in range(1, cq.engine.max_queues + 1):
        if cq.engine.sqs[i] != NULL and cq.engine.sqs[i].cq == cq:
            activate(cq.thread, cq.engine.sqs[i])


cdef uint32_t watch_admin(SubmissionQueue *sq, uint32_t tail) noexcept nogil:
    """The admin queue is the control plane's; a mapped doorbell page leaves the watching to us."""
    if tail == sq.engine.admin_seen_tail:
        return 0
    sq.engine.admin_seen_tail = tail
    if tail == sq.head:
        return 0
    sq.counters.shadow_finds += 1
    signal_fd(sq.engine.notify_fd)
    return 1
