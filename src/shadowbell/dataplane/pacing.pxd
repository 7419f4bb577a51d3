# How an IOThread waits for work: polling, napping or asleep.
#
# The three ways to learn of a command, by what they cost:
#   polling   our processor, all of it; nothing for the host, no latency
#   napping   a timer now and then; nothing for the host, latency of about a nap
#   asleep    nothing; a doorbell write by the host (an exit, a message) and our waking up
# So it depends on how long the gaps between pieces of work are. Gaps that the longest polling window
# would cover are polled through. Longer ones, of a host that is busy with our last answers, are slept
# through in naps with EventIdx left out of reach. When nothing came for several gaps, or gaps are
# longer than a nap is worth, the queues are armed and the thread sleeps until it is rung.
#
# A gap is taken as the time from the last work to the last look that found none, not to the one that
# found some: waking up takes longer than most gaps, and would make all of them look long. A sleep
# much longer than waking takes counts whole.
#
# With poll_always none of this is weighed: where there is an I/O queue, it is polled.

from libc.stdint cimport uint64_t

from shadowbell.dataplane.layout cimport ThreadState

cdef enum:
    LONG_SLEEP_NS = 200000     # a sleep whose waking up doesn't matter any more
    NAP_GAP_NS = 1000000       # gaps beyond this are slept through
    NAP_SPAN_NS = 100000       # nap for at least so long after the last work,
    NAP_GAPS = 4               # or for so many gaps
    NAP_SHORTEST_NS = 10000
    NAP_LONGEST_NS = 100000
    # A queue that found nothing for so long is armed and no longer polled, though the thread goes on.
    IDLE_QUEUE_NS = 1000000
    # A mapped doorbell can't wake anybody: the thread looks again after an eighth of the time that
    # nothing came, and never later than this.
    MAPPED_LONGEST_NS = 8000000


cdef inline uint64_t in_ticks(ThreadState *thread, uint64_t ns) noexcept nogil:
    return ns * thread.tick_factor >> 20


cdef inline void learn_gap(ThreadState *thread, uint64_t gap) noexcept nogil:
    """A gap ended; the average forgets in about eight."""
    thread.gap += (gap >> 3) - (thread.gap >> 3)


cdef inline bint worth_polling(ThreadState *thread, uint64_t idle) noexcept nogil:
    """Poll on, nothing having come for idle ticks?"""
    if thread.poll_always and thread.io_queue_count:
        return True
    return idle < thread.poll_max and (thread.gap < thread.poll_max or thread.mapped_count != 0)


cdef inline uint64_t idle_span(ThreadState *thread) noexcept nogil:
    """Ticks after which work is no longer expected soon."""
    return max(thread.gap * NAP_GAPS, in_ticks(thread, NAP_SPAN_NS))


cdef inline uint64_t idle_queue_span(ThreadState *thread) noexcept nogil:
    """Ticks without work after which a queue is armed, though others keep the thread awake."""
    if thread.poll_always:
        return ~(<uint64_t> 0)
    return max(idle_span(thread), in_ticks(thread, IDLE_QUEUE_NS))


cdef inline uint64_t nap_ns(ThreadState *thread, uint64_t idle) noexcept nogil:
    """How long to nap after idle ticks without work; 0: arm and sleep."""
    cdef uint64_t ns
    if (thread.poll_max and thread.gap < in_ticks(thread, NAP_GAP_NS)
            and idle < idle_span(thread)):
        ns = thread.gap * thread.ns_factor >> 23
        return min(max(ns, <uint64_t> NAP_SHORTEST_NS), <uint64_t> NAP_LONGEST_NS)
    if thread.mapped_count:
        ns = idle * thread.ns_factor >> 23
        return min(max(ns, <uint64_t> NAP_LONGEST_NS), <uint64_t> MAPPED_LONGEST_NS)
    return 0
