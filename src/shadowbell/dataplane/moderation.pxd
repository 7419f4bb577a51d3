# Whether a completion queue's first interrupt waits for more completions to share it.
#
# An interrupt stops a host that is still submitting. Where interrupts are dear (an emulated or
# overcommitted processor) and many commands are under way, one for several is better for all of
# them; where the host has nothing to do but wait for this one, it is only late. A device can't see
# which it is: with a fast disk a host that keeps 32 commands under way looks as if it kept one. So it
# is tried. A window of time is measured as it is, then one with first interrupts held, and holding
# goes on only where the host got at least an eighth more done. A trial that failed is repeated after
# four times as many windows as the last, a quarter of them after a time without a load, and one that was
# good is checked again after HOLD_WINDOWS.
#
# While it is held, an interrupt waits until the host has submitted nothing for twice the time between
# its commands, until FIRST_HOLD_ENTRIES share it, and for HOLD_COMMANDS times that at most. The time is
# that without holding: by what holding makes of it many a host would seem to wait. Errors and full
# queues don't wait.
#
# Trials must not show in the latencies of a host that waits for each command. It submits nothing while
# its interrupt is held: LONE such holds in a row end the trial. Others are tried for one window in
# LONGEST_PAUSE, less than one command in a thousand. Twice as many such holds in a row end holding. That
# may be a mood of an emulated host's, so it is tried again SOON.

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    WINDOW_NS = 10000000
    WINDOW_ENTRIES = 128       # with fewer a rate says little, and the window goes on
    STALE_WINDOWS = 8          # but not for longer than this: there is no load
    HOLD_WINDOWS = 64
    SOON = 2                   # windows before a trial of a host that was held until it seemed to wait
    FIRST_PAUSE = 16           # windows between two trials, at least
    LONGEST_PAUSE = 2048       # and at most
    WORTH_ENTRIES = 4          # so many entries an interrupt by themselves: nothing to gain
    QUIET_NS = 40000           # the least and
    LONGEST_QUIET_NS = 600000  # the most that the host must have been quiet for
    FIRST_HOLD_NS = 150000     # the same of the whole hold
    LONGEST_HOLD_NS = 2000000
    HOLD_COMMANDS = 8          # it may take the time of so many
    FIRST_HOLD_ENTRIES = 16
    LONE = 8

cdef enum Stance:
    PLAIN                      # interrupts go at once
    TRIAL                      # held, to see what it does
    HOLDING                    # held, because it was good

cdef struct Moderation:
    Stance stance
    uint32_t left              # PLAIN: windows before the next trial; HOLDING: before the next check
    uint32_t pause             # windows that the next failed trial is followed by
    uint32_t alone             # holds in a row during which the host submitted nothing
    uint64_t began             # ticks: the window; 0: none
    uint32_t entries           # completed in it
    uint32_t signals           # raised in it
    uint64_t plain             # the rate of the last window without holding
    uint64_t quiet             # ticks: for how long a first interrupt waits for the next command,
    uint64_t longest           # and in all


cdef inline void open_window(Moderation *moderation, uint64_t now) noexcept nogil:
    moderation.began = now
    moderation.entries = moderation.signals = 0


cdef inline uint64_t share_of(uint64_t window, uint64_t ns) noexcept nogil:
    """ns in ticks."""
    return window * ns // WINDOW_NS


cdef inline void hold_for(Moderation *moderation, uint64_t window, uint64_t gap) noexcept nogil:
    """gap: ticks between the host's commands."""
    moderation.quiet = min(max(2 * gap, share_of(window, QUIET_NS)),
                           share_of(window, LONGEST_QUIET_NS))
    moderation.longest = min(max(HOLD_COMMANDS * gap, share_of(window, FIRST_HOLD_NS)),
                             share_of(window, LONGEST_HOLD_NS))


cdef inline void give_up(Moderation *moderation) noexcept nogil:
    moderation.stance = PLAIN
    moderation.pause = min(max(4 * moderation.pause, FIRST_PAUSE), LONGEST_PAUSE)
    moderation.left = moderation.pause


cdef inline void moderate(Moderation *moderation, uint64_t now, uint64_t window, uint32_t entries,
                          bint signalled, bint alone) noexcept nogil:
    """Entries were told of, or taken without; window: WINDOW_NS in ticks.

    alone: the host has submitted nothing since the first of them was posted.
    """
    cdef uint64_t spent, rate
    if moderation.began == 0:
        open_window(moderation, now)
        return
    moderation.entries += entries
    moderation.signals += signalled
    if moderation.stance != PLAIN:
        moderation.alone = moderation.alone + 1 if alone else 0
        if moderation.stance == TRIAL and moderation.alone >= LONE:
            give_up(moderation)
            open_window(moderation, now)
            return
        if moderation.alone >= 2 * LONE:
            moderation.stance = PLAIN
            moderation.left = SOON
            open_window(moderation, now)
            return
    spent = now - moderation.began
    if spent < window:
        return
    if moderation.entries < WINDOW_ENTRIES:
        if spent >= STALE_WINDOWS * window:
            moderation.stance = PLAIN
            moderation.left = 0
            moderation.pause >>= 2
            open_window(moderation, now)
        return
    rate = (<uint64_t> moderation.entries << 32) // spent
    if moderation.stance == TRIAL:
        if rate > moderation.plain + (moderation.plain >> 3):
            moderation.stance = HOLDING
            moderation.left = HOLD_WINDOWS
            moderation.pause = 0
        else:
            give_up(moderation)
    elif moderation.left:
        moderation.left -= 1
        if moderation.left == 0:
            moderation.stance = PLAIN
    elif moderation.signals * WORTH_ENTRIES > moderation.entries:
        moderation.plain = rate
        moderation.stance = TRIAL
        moderation.alone = 0
        hold_for(moderation, window, spent // moderation.entries)
    open_window(moderation, now)


cdef inline uint64_t first_hold(const Moderation *moderation, uint32_t entries, uint64_t since,
                                uint64_t arrived) noexcept nogil:
    """Until when (ticks) a first interrupt is held; 0: not at all.

    since: its first entry was posted; arrived: the host's last command.
    """
    if moderation.stance == PLAIN or entries >= FIRST_HOLD_ENTRIES:
        return 0
    return min(since + moderation.longest, arrived + moderation.quiet)
