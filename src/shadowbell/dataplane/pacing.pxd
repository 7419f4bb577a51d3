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
#   - when gaps fit into the window as a whole, we poll to its end, whatever the deviation, and to four
#     times that while such long waits take no more than an eighth of the time;
#   - when nothing came for several gaps, or gaps are longer than a nap is worth, the queues are armed
#     and the thread sleeps until it is rung. Until then it looks again after every eighth of a gap.
# A gap counts for four average ones at most, for a guest that did something else for some milliseconds
# is as fast as before. A load that has become slow is known after some ten gaps all the same.
#
# A nap ends late by as much as it takes to wake up; that is learned too, and naps are shorter by it.
# A gap that ended during a nap or a short sleep is taken as the time to the last look that found no
# work, not to the one that found some: waking up takes longer than many gaps, and would make all of
# them look long. So naps that were too long shorten themselves. Average and deviation say too little of
# gaps that mostly are short: each nap before expected work that ends with work waiting makes the next
# ones more cautious, until such naps are rare.
#
# A thread that polls beside a busy process uses up its share of the processor, and is then away for
# milliseconds; one that mostly sleeps is let in at once. Polling looks are so close together that a
# long time between two of them tells of that. Or the hypervisor had the processor: then nothing is won
# by keeping off it. Which of the two it was the kernel says, that counts the time that a thread waited
# for a processor: at least half of the absence, if others had it. Short waits at wake-ups add up, so the
# count is also looked at before naps and sleeps, once in LOOK_NS.
#
# Everybody's processor is wanted now and then, so a first absence for others' sake changes nothing. For
# a while after a second, only gaps are polled through that are shorter than going to sleep takes. When
# the processor is lost again soon after that while, the next one is twice as long: losing it once in
# CONTENDED_NS would already be what the slowest per cent of the commands see. A host that waits for each
# command (each has an interrupt of its own) is then better served by a thread that sleeps until it is
# rung: naps are late, and use up our share too. Where commands share interrupts, they share naps.
#
# With always (`--poll-max-us busy`) none of this is weighed: where there is an I/O queue, it is polled.

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    WORTH_NS = 30000           # shorter naps cost as much as polling
    MARGIN_NS = 4000           # work may always be early by this much,
    CAUTION_NS = 8000          # and by so much more for each nap that ended late
    WINDOWS = 4                # a long wait is at most so many polling windows,
    LONG_WAITS_LOG2 = 3        # and all of them together this share of the time;
    LONG_WAITS_SAVED = 4       # so many in a row
    LONGEST_GAP = 4            # average ones: a gap counts for no more
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
    TOGETHER = 3 << 8          # with fewer commands to an interrupt the host waits for each
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
    uint64_t window            # gaps up to here are polled through; 0: neither poll nor nap
    uint64_t spare             # what may be polled beyond it
    bint always                # poll while there is an I/O queue, whatever the window is
    uint64_t gap               # between pieces of work, averaged
    uint64_t spread            # its mean deviation
    uint64_t overshoot         # of naps, averaged
    uint64_t caution           # naps end so much earlier, as some ended with work waiting
    bint expecting             # the last rest was a nap before expected work,
    bint overslept             # and ended by its timer: work found now may have waited
    uint64_t last_work
    uint64_t rested_at         # the last look before a nap or sleep; 0: a later one ended it
    uint64_t looked_at         # the last look, if we poll since; else 0
    uint64_t waited            # ns in all that the thread waited for a processor, as far as is known,
    uint64_t waited_at         # and when that was read
    uint64_t contended_until   # others want the processor until then
    uint64_t contended_span    # what was thought last of how long they will
    uint64_t together          # 256 times the commands that share an interrupt, averaged
    uint64_t ns_factor         # ns = ticks * ns_factor >> 20
    uint64_t tick_factor       # ticks = ns * tick_factor >> 20


cdef inline uint64_t in_ticks(const Pace *pace, uint64_t ns) noexcept nogil:
    return ns * pace.tick_factor >> 20


cdef inline void begin_pace(Pace *pace, uint64_t poll_max_ns, uint64_t ns_factor,
                            uint64_t tick_factor) noexcept nogil:
    """Nothing is known yet: gaps are taken as long. poll_max_ns: the longest wait of all."""
    pace.ns_factor = ns_factor
    pace.tick_factor = tick_factor
    pace.always = False
    pace.window = in_ticks(pace, poll_max_ns) // WINDOWS
    pace.spare = pace.caution = 0
    pace.expecting = pace.overslept = False
    pace.gap = in_ticks(pace, 2 * NAP_GAP_NS)
    pace.spread = pace.gap >> 1
    pace.overshoot = in_ticks(pace, WORTH_NS)
    pace.last_work = pace.rested_at = pace.looked_at = 0
    pace.waited = pace.waited_at = 0
    pace.contended_until = pace.contended_span = 0
    pace.together = TOGETHER


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
    """Others had it between two looks."""
    cdef uint64_t shortest = in_ticks(pace, CONTENDED_NS)
    if now > pace.contended_until + pace.contended_span:
        pace.contended_span = shortest >> 1
        pace.contended_until = now
        return
    if now > pace.contended_until:
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
    earn_long_waits(pace, gap)
    spend_long_wait(pace)
    if was_away(pace, found):
        gap = pace.looked_at - pace.last_work
    elif pace.rested_at:
        if found - pace.rested_at > in_ticks(pace, LONG_SLEEP_NS):
            gap = min(gap, in_ticks(pace, 8 * NAP_GAP_NS))
        else:
            gap = pace.rested_at - pace.last_work
    if pace.overslept:
        pace.caution += in_ticks(pace, CAUTION_NS)
    gap = min(gap, max(LONGEST_GAP * pace.gap, in_ticks(pace, WORTH_NS)))
    learn(&pace.spread, gap - pace.gap if gap > pace.gap else pace.gap - gap)
    learn(&pace.gap, gap)
    pace.overshoot -= pace.overshoot >> 8  # one bad moment must not end napping for good
    pace.caution -= pace.caution >> 7
    pace.overslept = False
    pace.last_work = now
    pace.rested_at = pace.looked_at = 0


cdef inline void earn_long_waits(Pace *pace, uint64_t elapsed) noexcept nogil:
    pace.spare = min(pace.spare + (elapsed >> LONG_WAITS_LOG2),
                     LONG_WAITS_SAVED * (WINDOWS - 1) * pace.window)


cdef inline void spend_long_wait(Pace *pace) noexcept nogil:
    """Polling has ended, if there was any, with the last look."""
    cdef uint64_t waited = pace.looked_at - pace.last_work
    if pace.looked_at and waited > pace.window:
        pace.spare -= min(pace.spare, waited - pace.window)


cdef inline void begin_rest(Pace *pace, uint64_t now) noexcept nogil:
    """A look found no work, and the thread naps or sleeps now."""
    spend_long_wait(pace)
    pace.rested_at = now
    pace.looked_at = 0


cdef inline void slept_for_others(Pace *pace, uint64_t now) noexcept nogil:
    """A look found no work, and the thread goes to sleep whatever the gaps are (gathering.pxd)."""
    pace.expecting = pace.overslept = False
    begin_rest(pace, now)


cdef inline void napped(Pace *pace, uint64_t asked, uint64_t took) noexcept nogil:
    """A nap ended by its timer."""
    learn(&pace.overshoot, took - asked if took > asked else 0)
    pace.overslept = pace.expecting


cdef inline void told(Pace *pace, uint32_t entries) noexcept nogil:
    """A host with interrupts was told of so many completions at once, or took them."""
    learn(&pace.together, <uint64_t> entries << 8)


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
    if rest == REST_POLL:
        pace.looked_at = now
        pace.rested_at = 0
    else:
        begin_rest(pace, now)
    return rest


cdef inline int weigh(Pace *pace, uint64_t now, bint mapped, uint64_t *nap) noexcept nogil:
    cdef uint64_t idle = now - pace.last_work
    cdef uint64_t margin = 2 * pace.spread + in_ticks(pace, MARGIN_NS)
    cdef uint64_t sooner = margin + pace.caution + pace.overshoot
    cdef uint64_t window = pace.window
    cdef uint64_t longer = min(pace.spare, (WINDOWS - 1) * window)
    cdef uint64_t early = 0, late = 0
    cdef bint naps = pace.gap < in_ticks(pace, LOOK_GAP_NS)
    pace.expecting = pace.overslept = False
    if now < pace.contended_until:
        window = min(window, in_ticks(pace, CONTENDED_WINDOW_NS))
        longer = 0
        naps = naps and pace.together >= TOGETHER
    if window and pace.gap < in_ticks(pace, NAP_GAP_NS):
        if pace.gap < window:
            late = window + longer
        elif 2 * margin + pace.caution <= window:
            late = pace.gap + margin
        if late and pace.gap > sooner:
            early = pace.gap - sooner
        if idle + in_ticks(pace, WORTH_NS) < early:
            nap[0] = early - idle
            pace.expecting = True
            return REST_NAP
        if idle < late:
            return REST_POLL
        if naps and idle < idle_span(pace):
            nap[0] = min(max(pace.gap >> 3, in_ticks(pace, NAP_SHORTEST_NS)),
                         in_ticks(pace, NAP_LONGEST_NS))
            return REST_NAP
    if not mapped:
        return REST_SLEEP
    if idle < window:
        return REST_POLL
    nap[0] = min(max(idle >> 3, in_ticks(pace, NAP_LONGEST_NS)), in_ticks(pace, MAPPED_LONGEST_NS))
    return REST_NAP
