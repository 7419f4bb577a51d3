# How many completions of other threads' an IOThread lets gather before it wakes up for them.
#
# A client library (librbd) completes requests in threads of its own. Woken for each, an IOThread pays
# for a wake-up, an interrupt, the host's next doorbell and its own next call into the library, one
# command at a time. Where processors are idle that costs nobody anything, and waiting would only make
# commands late. Where they aren't, the library's threads and what answers them get the processor
# that much later, and polling for completions takes it from those that are to bring them.
#
# Which it is the kernel says: how long the thread ran, and how long it could have run but had no
# processor. Where it waited for more than an eighth of the time that it ran, processors are short:
# then it doesn't poll for what it awaits, and a quarter of what is under way may gather. With fewer
# than eight under way each wakes it at once. It waits for no more than are to be expected
#   - in a quarter of the time that requests take (some may be stuck: those that aren't don't wait
#     for them), and
#   - in LONGEST_NS,
# and for twice that time at most.

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    LOOK_NS = 10000000         # between two looks at the kernel's figures
    LONGEST_NS = 2000000

# Of one IOThread; times in ns.
cdef struct Gathering:
    uint32_t awaited           # requests that other threads are to end
    uint64_t latency           # of them, averaged
    bint crowded               # processors are short
    uint64_t looked_at         # and by then
    uint64_t ran
    uint64_t waited
    uint32_t taken             # notes of other threads
    uint64_t spacing           # of notes between the last two looks, on average


cdef inline void await_end(Gathering *gathering) noexcept nogil:
    """A request is under way that another thread is to end."""
    gathering.awaited += 1


cdef inline void has_ended(Gathering *gathering, uint64_t took) noexcept nogil:
    gathering.awaited -= 1
    gathering.latency += (took >> 3) - (gathering.latency >> 3)


cdef inline bint must_look(const Gathering *gathering, uint64_t now) noexcept nogil:
    return now - gathering.looked_at >= LOOK_NS


cdef inline void look(Gathering *gathering, uint64_t now, uint64_t ran, uint64_t waited,
                      uint32_t taken) noexcept nogil:
    """What the kernel says of the thread, and how many notes it has taken, both since it began."""
    cdef uint32_t count = taken - gathering.taken
    gathering.crowded = waited - gathering.waited > (ran - gathering.ran) >> 3
    gathering.spacing = max((now - gathering.looked_at) // max(count, <uint32_t> 1), <uint64_t> 1)
    gathering.looked_at = now
    gathering.ran = ran
    gathering.waited = waited
    gathering.taken = taken


cdef inline uint32_t share_to_await(const Gathering *gathering) noexcept nogil:
    """How many notes are worth a wake-up; 0: don't sleep for them, rest as is usual."""
    cdef uint64_t expected
    if gathering.awaited == 0 or not gathering.crowded:
        return 0
    expected = min(gathering.latency >> 2, <uint64_t> LONGEST_NS) // gathering.spacing
    return <uint32_t> max(min(<uint64_t> gathering.awaited >> 2, expected), <uint64_t> 1)


cdef inline uint64_t longest_wait(const Gathering *gathering, uint32_t share) noexcept nogil:
    """For so many notes; 0: no limit, the first one ends it."""
    return 2 * share * gathering.spacing if share > 1 else 0
