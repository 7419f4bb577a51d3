# How an IOThread waits for work: polling, napping or asleep.
#
# The three ways to learn of a command, by what they cost:
#   polling   our processor, all of it; nothing for the host, no latency
#   napping   a timer and a wake-up, 15 to 20 us of processor time on virtual machines; nothing for
#             the host, latency when work comes meanwhile
#   asleep    nothing; a doorbell write by the host (an exit, a message) and our waking up
# So it depends on how long the gaps between pieces of work are, and on how well they are known. Of
# the gaps the average and the mean deviation are learned (as TCP learns round trips). Work is
# expected between two deviations before the average and two after it:
#   - until shortly before then we nap, if that is worth a nap;
#   - then we poll, unless that would take longer than the polling window;
#   - when gaps fit into the window as a whole, we poll to its end, whatever the deviation;
#   - when nothing came for several gaps, or gaps are longer than a nap is worth, the queues are armed
#     and the thread sleeps until it is rung. Until then it looks again after every eighth of a gap.
#
# A nap ends late by as much as it takes to wake up; that is learned too, and naps are shorter by it.
# A gap that ended during a nap or a short sleep is taken as the time to the last look that found no
# work, not to the one that found some: waking up takes longer than many gaps, and would make all of
# them look long. So naps that were too long shorten themselves.
#
# A thread that polls beside a busy process uses up its share of the processor, and is then away for
# milliseconds; one that mostly sleeps is let in at once. Polling looks are so close together that a
# long time between two of them tells of that. Or the hypervisor had the processor: then nothing is won
# by keeping off it. Which of the two it was the kernel says, that counts the time that a thread waited
# for a processor: at least half of the absence, if others had it. Short waits at wake-ups add up, so the
# count is also looked at before naps and sleeps, once in LOOK_NS.
#
# For a while after an absence for others' sake only gaps are polled through that are shorter than going
# to sleep takes. When the processor is lost again soon after that while, the next one is twice as long:
# losing it once in CONTENDED_NS would already be what the slowest per cent of the commands see.
#
# With always (`--poll-max-us busy`) none of this is weighed: where there is an I/O queue, it is polled.

from libc.stdint cimport uint64_t

cdef enum:
    WORTH_NS = 30000           # shorter naps cost as much as polling
    MARGIN_NS = 4000           # work may always be early by this much
    LONG_SLEEP_NS = 200000     # a sleep whose waking up doesn't matter any more
    NAP_GAP_NS = 1000000       # gaps beyond this are slept through,
    LOOK_GAP_NS = 400000       # and beyond this unless it is known when they end
    NAP_SPAN_NS = 100000       # nap for at least so long after the last work,
    NAP_GAPS = 4               # or for so many gaps
    NAP_SHORTEST_NS = 30000
    NAP_LONGEST_NS = 100000
    # A queue that found nothing for so long is armed and no longer polled, though the thread goes on.
    IDLE_QUEUE_NS = 1000000
    # A mapped doorbell can't wake anybody: the thread looks again after an eighth of the time that
    # nothing came, and never later than this.
    MAPPED_LONGEST_NS = 8000000
    AWAY_NS = 500000           # between two looks: somebody else had the processor,
    CONTENDED_NS = 100000000   # and will want it for so long, at first,
    CONTENDED_DOUBLINGS = 5    # and this often twice as long
    CONTENDED_WINDOW_NS = 10000
    LOOK_NS = 1000000
    # While commands are held by limits nobody polls: several of them start at a time, none the earlier.
    HELD_NAP_NS = 100000

cdef extern from *:
    """
    #define SB_UNKNOWN UINT64_MAX
    """
    uint64_t UNKNOWN "SB_UNKNOWN"

cdef enum Rest:
    REST_POLL                  # look again at once
    REST_NAP                   # sleep for a while, unarmed
    REST_SLEEP                 # arm, and sleep until rung

# In ticks, but for the factors.
cdef struct Pace:
    uint64_t poll_max          # the polling window; 0: neither poll nor nap
    bint always                # poll while there is an I/O queue, whatever poll_max says
    uint64_t gap               # between pieces of work, averaged
    uint64_t spread            # its mean deviation
    uint64_t overshoot         # of naps, averaged
    uint64_t last_work
    uint64_t rested_at         # the last look before a nap or sleep; 0: a later one ended it
    uint64_t looked_at         # the last look, if we poll since; else 0
    uint64_t waited            # ns in all that the thread waited for a processor, as far as is known,
    uint64_t waited_at         # and when that was read
    uint64_t contended_until   # others want the processor until then
    uint64_t contended_span    # what was thought last of how long they will
    uint64_t ns_factor         # ns = ticks * ns_factor >> 20
    uint64_t tick_factor       # ticks = ns * tick_factor >> 20


cdef inline uint64_t in_ticks(const Pace *pace, uint64_t ns) noexcept nogil:
    return ns * pace.tick_factor >> 20


cdef inline void begin_pace(Pace *pace, uint64_t poll_max_ns, uint64_t ns_factor,
                            uint64_t tick_factor) noexcept nogil:
    """Nothing is known yet: gaps are taken as long."""
    pace.ns_factor = ns_factor
    pace.tick_factor = tick_factor
    pace.always = False
    pace.poll_max = in_ticks(pace, poll_max_ns)
    pace.gap = in_ticks(pace, 2 * NAP_GAP_NS)
    pace.spread = pace.gap >> 1
    pace.overshoot = in_ticks(pace, WORTH_NS)
    pace.last_work = pace.rested_at = pace.looked_at = 0
    pace.waited = pace.waited_at = 0
    pace.contended_until = pace.contended_span = 0


cdef inline void learn(uint64_t *average, uint64_t value) noexcept nogil:
    """It forgets in about eight."""
    average[0] += (value >> 3) - (average[0] >> 3)


cdef inline bint was_away(const Pace *pace, uint64_t now) noexcept nogil:
    """Did the thread not run between two looks?"""
    return pace.looked_at and now - pace.looked_at > in_ticks(pace, AWAY_NS)


cdef inline bint waits_are_old(const Pace *pace, uint64_t now) noexcept nogil:
    """Is what is known of the kernel's count of waiting too old?"""
    return now - pace.waited_at > in_ticks(pace, LOOK_NS)


cdef inline void note_waits(Pace *pace, uint64_t now, uint64_t waited) noexcept nogil:
    """waited: ns for a processor, since the thread began."""
    pace.waited = waited
    pace.waited_at = now


cdef inline void lost_processor(Pace *pace, uint64_t now) noexcept nogil:
    """Others had it between two looks, and will want it again."""
    cdef uint64_t shortest = in_ticks(pace, CONTENDED_NS)
    if now > pace.contended_until + pace.contended_span:
        pace.contended_span = shortest
    elif now > pace.contended_until:
        pace.contended_span = min(2 * pace.contended_span, shortest << CONTENDED_DOUBLINGS)
    pace.contended_until = now + pace.contended_span


cdef inline void returned(Pace *pace, uint64_t now, uint64_t waited) noexcept nogil:
    """The thread was away; waited: as in ``note_waits``, or UNKNOWN."""
    cdef uint64_t away = (now - pace.looked_at) * pace.ns_factor >> 20
    if waited == UNKNOWN or waited - pace.waited >= away >> 1:
        lost_processor(pace, now)
    if waited != UNKNOWN:
        note_waits(pace, now, waited)


cdef inline void worked(Pace *pace, uint64_t found, uint64_t now) noexcept nogil:
    """A look found work, which is done: a gap has ended and the next one begins."""
    cdef uint64_t gap = found - pace.last_work
    if was_away(pace, found):
        gap = pace.looked_at - pace.last_work
    elif pace.rested_at:
        if found - pace.rested_at > in_ticks(pace, LONG_SLEEP_NS):
            gap = min(gap, in_ticks(pace, 8 * NAP_GAP_NS))
        else:
            gap = pace.rested_at - pace.last_work
    learn(&pace.spread, gap - pace.gap if gap > pace.gap else pace.gap - gap)
    learn(&pace.gap, gap)
    pace.overshoot -= pace.overshoot >> 8  # one bad moment must not end napping for good
    pace.last_work = now
    pace.rested_at = pace.looked_at = 0


cdef inline void slept_for_others(Pace *pace, uint64_t now) noexcept nogil:
    """A look found no work, and the thread goes to sleep whatever the gaps are (gathering.pxd)."""
    pace.rested_at = now
    pace.looked_at = 0


cdef inline void napped(Pace *pace, uint64_t asked, uint64_t took) noexcept nogil:
    """A nap ended by its timer."""
    learn(&pace.overshoot, took - asked if took > asked else 0)


cdef inline uint64_t idle_span(const Pace *pace) noexcept nogil:
    """Ticks after which work is no longer expected soon."""
    return max(pace.gap * NAP_GAPS, in_ticks(pace, NAP_SPAN_NS))


cdef inline uint64_t idle_queue_span(const Pace *pace) noexcept nogil:
    """Ticks without work after which a queue is armed, though others keep the thread awake."""
    if pace.always:
        return ~(<uint64_t> 0)
    return max(idle_span(pace), in_ticks(pace, IDLE_QUEUE_NS))


cdef inline int how_to_rest(Pace *pace, uint64_t now, bint queues, bint mapped, bint held,
                            uint64_t *nap) noexcept nogil:
    """What to do after a look that found nothing; ``nap`` is in ticks.

    queues: there are I/O queues. mapped: a polled queue has a mapped doorbell. held: commands are
    held by limits.
    """
    cdef int rest = REST_POLL if pace.always and queues else weigh(pace, now, mapped, nap)
    if rest == REST_POLL and held and not pace.always:
        rest = REST_NAP
        nap[0] = in_ticks(pace, HELD_NAP_NS)
    pace.looked_at = now if rest == REST_POLL else 0
    if rest == REST_POLL:
        pace.rested_at = 0
    else:
        pace.rested_at = now
    return rest


cdef inline int weigh(const Pace *pace, uint64_t now, bint mapped, uint64_t *nap) noexcept nogil:
    cdef uint64_t idle = now - pace.last_work
    cdef uint64_t margin = 2 * pace.spread + in_ticks(pace, MARGIN_NS)
    cdef uint64_t window = pace.poll_max
    cdef uint64_t early = 0, late = 0
    if now < pace.contended_until:
        window = min(window, in_ticks(pace, CONTENDED_WINDOW_NS))
    if window and pace.gap < in_ticks(pace, NAP_GAP_NS):
        if pace.gap < window:
            late = window
        elif 2 * margin <= window:
            late = pace.gap + margin
        if late and pace.gap > margin + pace.overshoot:
            early = pace.gap - margin - pace.overshoot
        if idle + in_ticks(pace, WORTH_NS) < early:
            nap[0] = early - idle
            return REST_NAP
        if idle < late:
            return REST_POLL
        if pace.gap < in_ticks(pace, LOOK_GAP_NS) and idle < idle_span(pace):
            nap[0] = min(max(pace.gap >> 3, in_ticks(pace, NAP_SHORTEST_NS)),
                         in_ticks(pace, NAP_LONGEST_NS))
            return REST_NAP
    if not mapped:
        return REST_SLEEP
    if idle < window:
        return REST_POLL
    nap[0] = min(max(idle >> 3, in_ticks(pace, NAP_LONGEST_NS)), in_ticks(pace, MAPPED_LONGEST_NS))
    return REST_NAP
