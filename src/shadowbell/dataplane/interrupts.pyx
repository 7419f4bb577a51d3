"""Signalling completion queues' vectors: at once, held back, or coalesced. See interrupts.pxd."""

from libc.stdint cimport uint32_t, uint64_t

from shadowbell.dataplane.doorbells cimport distance, read_head
from shadowbell.dataplane.events cimport signal_fd
from shadowbell.dataplane.interrupts cimport DROP, HOLD, RAISE, Verdict, judge
from shadowbell.dataplane.layout cimport (
    CompletionQueue,
    Counters,
    EngineState,
    ThreadState,
)
from shadowbell.dataplane.moderation cimport WINDOW_NS, first_hold, moderate
from shadowbell.dataplane.pacing cimport in_ticks, told

cdef enum:
    HOLD_NS = 50000            # a host takes so long to be woken, or a little less


cdef void raise_interrupts(ThreadState *thread) noexcept nogil:
    """At a round's end: signal what is due, keep the rest in the list."""
    cdef CompletionQueue **link = &thread.interrupts
    cdef CompletionQueue *cq = link[0]
    while cq != NULL:
        count_batch(cq)
        if settle(thread, cq):
            link[0] = cq.next_interrupt
        else:
            link = &cq.next_interrupt
        cq = link[0]


cdef void count_batch(CompletionQueue *cq) noexcept nogil:
    """What a round posts to a queue would have been worth an interrupt."""
    if cq.unsignalled != cq.counted:
        cq.counted = cq.unsignalled
        cq.batches += 1


cdef bint coalescing(CompletionQueue *cq, uint64_t now) noexcept nogil:
    return (cq.unsignalled < cq.threshold and now - cq.since < cq.delay
            and not cq.urgent and not cq.stalled)


cdef bint settle(ThreadState *thread, CompletionQueue *cq) noexcept nogil:
    """Decide about a queue's unsignalled entries; False: not yet."""
    cdef Verdict verdict
    if cq.held_until == 0:
        if coalescing(cq, thread.now):
            return False
        cq.held_until = thread.now + in_ticks(&thread.pace, HOLD_NS)
    verdict = judge(distance(read_head(cq), cq.tail, cq.entries), cq.unsignalled)
    if verdict == HOLD and thread.now < cq.held_until:
        return False
    if verdict == RAISE and held_first(thread, cq):
        return False
    told(&thread.pace, cq.unsignalled)
    moderate(&cq.moderation, thread.now, in_ticks(&thread.pace, WINDOW_NS), cq.unsignalled,
             verdict != DROP, cq.arrived <= cq.since)
    finish(cq, verdict != DROP)
    return True


cdef bint held_first(ThreadState *thread, CompletionQueue *cq) noexcept nogil:
    cdef uint64_t until
    if cq.urgent or cq.stalled:
        return False
    until = first_hold(&cq.moderation, cq.unsignalled, cq.since, cq.arrived)
    if until <= thread.now:
        return False
    cq.held_until = until
    return True


cdef void finish(CompletionQueue *cq, bint signal) noexcept nogil:
    """No entry is unsignalled any more. A vector that is masked now is made up for by set_vector."""
    cdef Counters *counters = &cq.engine.counters[cq.qid]
    cdef int fd = cq.engine.vectors[cq.vector]
    if fd >= 0:
        counters.interrupts += signal
        counters.interrupts_suppressed += cq.batches - signal
        if signal:
            signal_fd(fd)
    cq.unsignalled = cq.counted = cq.batches = 0
    cq.held_until = 0
    cq.urgent = False


cdef void flush_interrupts(ThreadState *thread, EngineState *engine,
                           CompletionQueue *only) noexcept nogil:
    """Signal what an engine's queues hold back, or one of them: they may change, move, or go."""
    cdef CompletionQueue **link = &thread.interrupts
    cdef CompletionQueue *cq = link[0]
    while cq != NULL:
        if cq.engine == engine and (only == NULL or cq == only):
            count_batch(cq)
            finish(cq, True)
            link[0] = cq.next_interrupt
        else:
            link = &cq.next_interrupt
        cq = link[0]


cdef uint64_t next_interrupt_ns(ThreadState *thread) noexcept nogil:
    """Nanoseconds, at least 1, until the first of what is held back is due. Some must be."""
    cdef CompletionQueue *cq = thread.interrupts
    cdef uint64_t due, soonest = ~(<uint64_t> 0)
    while cq != NULL:
        due = cq.held_until if cq.held_until else cq.since + cq.delay
        soonest = min(soonest, due)
        cq = cq.next_interrupt
    if soonest <= thread.now:
        return 1
    return ((soonest - thread.now) * thread.pace.ns_factor >> 20) + 1
