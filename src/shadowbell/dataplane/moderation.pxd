# Whether a completion queue's first interrupt waits for more completions to share it.
#
# An interrupt stops a host that is still submitting. Where interrupts are dear (an emulated or
# overcommitted processor) and many commands are under way, one for several is better for all of
# them; where the host has nothing to do but wait for this one, it is only late. A device can't see
# which it is: with a fast disk a host that keeps 32 commands under way looks as if it kept one. So it
# is tried. A window of time is measured as it is, then one with first interrupts held, and holding
# goes on only where the host got at least an eighth more done. A trial that failed is repeated after
# twice as many windows as the last, and one that was good is checked again after HOLD_WINDOWS.
#
# While it is held, an interrupt waits until the host has submitted nothing for QUIET_NS, until
# FIRST_HOLD_ENTRIES share it, and for FIRST_HOLD_NS at most. Errors and full queues don't wait.

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    WINDOW_NS = 10000000
    WINDOW_ENTRIES = 128       # with fewer a rate says little, and the window goes on
    STALE_WINDOWS = 8          # but not for longer than this: there is no load
    HOLD_WINDOWS = 64
    LONGEST_PAUSE = 512        # windows between two trials
    WORTH_ENTRIES = 4          # so many entries an interrupt by themselves: nothing to gain
    QUIET_NS = 40000
    FIRST_HOLD_NS = 150000
    FIRST_HOLD_ENTRIES = 16

cdef enum Stance:
    PLAIN                      # interrupts go at once
    TRIAL                      # held, to see what it does
    HOLDING                    # held, because it was good

cdef struct Moderation:
    Stance stance
    uint64_t began             # ticks: the window; 0: none
    uint64_t entries           # completed in it
    uint64_t signals           # raised in it
    uint64_t plain             # the rate of the last window without holding
    uint32_t left              # PLAIN: windows before the next trial; HOLDING: before the next check
    uint32_t pause             # windows that the next failed trial is followed by


cdef inline void open_window(Moderation *moderation, uint64_t now) noexcept nogil:
    moderation.began = now
    moderation.entries = moderation.signals = 0


cdef inline void moderate(Moderation *moderation, uint64_t now, uint64_t window, uint32_t entries,
                          bint signalled) noexcept nogil:
    """Entries were told of, or taken without; window: WINDOW_NS in ticks."""
    cdef uint64_t spent, rate
    if moderation.began == 0:
        open_window(moderation, now)
        return
    moderation.entries += entries
    moderation.signals += signalled
    spent = now - moderation.began
    if spent < window:
        return
    if moderation.entries < WINDOW_ENTRIES:
        if spent >= STALE_WINDOWS * window:
            moderation.stance = PLAIN
            moderation.left = 0
            open_window(moderation, now)
        return
    rate = (moderation.entries << 32) // spent
    if moderation.stance == TRIAL:
        if rate > moderation.plain + (moderation.plain >> 3):
            moderation.stance = HOLDING
            moderation.left = HOLD_WINDOWS
            moderation.pause = 0
        else:
            moderation.stance = PLAIN
            moderation.pause = min(max(2 * moderation.pause, 1), LONGEST_PAUSE)
            moderation.left = moderation.pause
    elif moderation.left:
        moderation.left -= 1
        if moderation.left == 0:
            moderation.stance = PLAIN
    elif moderation.signals * WORTH_ENTRIES > moderation.entries:
        moderation.plain = rate
        moderation.stance = TRIAL
    open_window(moderation, now)


cdef inline uint64_t first_hold(const Moderation *moderation, uint32_t entries, uint64_t since,
                                uint64_t arrived, uint64_t quiet, uint64_t longest) noexcept nogil:
    """Until when (ticks) a first interrupt is held; 0: not at all.

    since: its first entry was posted; arrived: the host's last command. quiet, longest: QUIET_NS and
    FIRST_HOLD_NS in ticks.
    """
    if moderation.stance == PLAIN or entries >= FIRST_HOLD_ENTRIES:
        return 0
    return min(since + longest, arrived + quiet)
