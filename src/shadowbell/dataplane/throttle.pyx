"""Holding commands back until a namespace's limits let them start (throttle.pxd has the rules)."""

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.mman cimport (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    mmap,
    munmap,
)

from shadowbell.dataplane.includes.cpu cimport load64, swap_if64
from shadowbell.dataplane.layout cimport (
    MAX_NAMESPACES,
    SQE_SIZE,
    EngineState,
    Flow,
    Held,
    HeldCommand,
    NamespaceEntry,
    SubmissionQueue,
    ThreadState,
    Throttle,
)


cdef extern from "<sys/mman.h>":
    enum:
        MAP_NORESERVE

cdef enum Opcode:
    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    COMPARE = 0x05
    VERIFY = 0x0C


cdef Held *new_held() except NULL:
    """Room for all that a queue can have held; its pages are taken as they are needed."""
    cdef void *memory = mmap(NULL, sizeof(Held), PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if memory == MAP_FAILED:
        raise OSError(errno, "no memory for a queue's held commands")
    return <Held *> memory


cdef void free_held(Held *held) noexcept nogil:
    if held != NULL:
        munmap(held, sizeof(Held))


cdef bint must_wait(ThreadState *thread, SubmissionQueue *sq, NamespaceEntry *ns,
                    const uint8_t *sqe) noexcept nogil:
    """Take a time for a command of a limited namespace; True: it is held until then."""
    cdef uint32_t index = (<const uint32_t *> (sqe + 4))[0] - 1
    cdef Flow *flow = &sq.held.flows[index]
    cdef HeldCommand *command
    cdef uint64_t due = 0
    cdef uint32_t slot
    if sqe[0] == FLUSH:
        return False  # it moves nothing, and waits for nothing that hasn't completed
    if flow.first == 0:
        due = reserve(ns, sqe, thread.now)
        if due <= thread.now:
            return False
    slot = sq.held.spare
    if slot:
        sq.held.spare = sq.held.commands[slot - 1].next
    else:
        sq.held.used += 1
        slot = sq.held.used
    command = &sq.held.commands[slot - 1]
    memcpy(command.sqe, sqe, SQE_SIZE)
    command.arrived = thread.now
    command.next = 0
    sq.held.count += 1
    if flow.first:
        sq.held.commands[flow.last - 1].next = slot
        flow.last = slot
        return True
    flow.first = flow.last = slot
    flow.index = index
    flow.sq = sq
    flow.due = due
    push(thread, flow)
    return True


cdef bint take_held(ThreadState *thread, uint8_t *sqe, SubmissionQueue **sq,
                    uint64_t *arrived) noexcept nogil:
    """Take the command whose time came first; False: none has come."""
    cdef Flow *flow = thread.held
    if flow == NULL or flow.due > thread.now:
        return False
    thread.held = merge(flow.left, flow.right)
    sq[0] = flow.sq
    pop(flow.sq.held, flow, sqe, arrived)
    if flow.first:
        flow.due = reserve(flow.sq.engine.namespaces[flow.index],
                           flow.sq.held.commands[flow.first - 1].sqe, thread.now)
        push(thread, flow)
    return True


cdef bint pop_any(Held *held, uint32_t index, uint8_t *sqe, uint64_t *arrived) noexcept nogil:
    """Take a namespace's oldest held command, whatever its time; the flow is in no heap."""
    if held.flows[index].first == 0:
        return False
    pop(held, &held.flows[index], sqe, arrived)
    return True


cdef void pop(Held *held, Flow *flow, uint8_t *sqe, uint64_t *arrived) noexcept nogil:
    cdef uint32_t slot = flow.first
    cdef HeldCommand *command = &held.commands[slot - 1]
    memcpy(sqe, command.sqe, SQE_SIZE)
    arrived[0] = command.arrived
    flow.first = command.next
    command.next = held.spare
    held.spare = slot
    held.count -= 1


cdef void let_go(ThreadState *thread, EngineState *engine, SubmissionQueue *sq) noexcept nogil:
    """Take the flows of an engine, or only of one queue, from the heap; they keep what they hold."""
    cdef Flow *kept = NULL
    cdef Flow *flow
    while thread.held != NULL:
        flow = thread.held
        thread.held = merge(flow.left, flow.right)
        if flow.sq.engine != engine or sq != NULL and flow.sq != sq:
            flow.left = flow.right = NULL
            flow.rank = 1
            kept = merge(kept, flow)
    thread.held = kept


cdef void hold_again(ThreadState *thread, SubmissionQueue *sq) noexcept nogil:
    """Put a queue's flows into the heap of the thread that serves it from now on."""
    cdef uint32_t index
    if held_of(sq):
        for index in range(MAX_NAMESPACES):
            if sq.held.flows[index].first:
                push(thread, &sq.held.flows[index])


# --- time -------------------------------------------------------------------------------------------

cdef uint64_t reserve(NamespaceEntry *ns, const uint8_t *sqe, uint64_t now) noexcept nogil:
    """When the command may start; now or earlier where there is no limit (any more)."""
    cdef Throttle *throttle
    cdef uint64_t start, moved
    cdef uint8_t opcode = sqe[0]
    if ns == NULL or ns.throttle == NULL:
        return 0
    throttle = ns.throttle
    start = now - throttle.burst if now > throttle.burst else 0
    moved = start
    if throttle.command_cost:
        start = reserve_time(&throttle.next_command, throttle.command_cost, start)
    if throttle.byte_cost and (opcode == READ or opcode == WRITE or opcode == COMPARE
                               or opcode == VERIFY):
        start = max(start, reserve_time(
            &throttle.next_byte,
            ((((<const uint32_t *> (sqe + 48))[0] & 0xFFFF) + <uint64_t> 1) << ns.lba_shift)
            * throttle.byte_cost >> BYTE_SHIFT,
            moved))
    return start


cdef uint64_t reserve_time(uint64_t *next, uint64_t cost, uint64_t earliest) noexcept nogil:
    cdef uint64_t old, start
    while True:
        old = load64(next)
        start = max(old, earliest)
        if swap_if64(next, old, start + cost):
            return start


# --- the heap ---------------------------------------------------------------------------------------

cdef void push(ThreadState *thread, Flow *flow) noexcept nogil:
    flow.left = flow.right = NULL
    flow.rank = 1
    thread.held = merge(thread.held, flow)


cdef Flow *merge(Flow *a, Flow *b) noexcept nogil:
    """The way down the right side is at most the logarithm of the flows."""
    cdef Flow *other
    if a == NULL:
        return b
    if b == NULL:
        return a
    if b.due < a.due:
        other = a
        a = b
        b = other
    a.right = merge(a.right, b)
    if a.left == NULL or a.left.rank < a.right.rank:
        other = a.left
        a.left = a.right
        a.right = other
    a.rank = 1 if a.right == NULL else a.right.rank + 1
    return a
