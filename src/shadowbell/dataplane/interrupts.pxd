# When a completion queue's vector is signalled, and why a host that sleeps on it is never left with
# completions. tests/model/interrupts.py explores all of it.
#
# A host is woken by the signal, takes entries until the phase tag says that there is no more, stores
# its head, and sleeps again. So after a signal it is sure to look at every entry posted before, and
# to store a head beyond them afterwards. It is not sure to see entries posted after the signal: it
# may have looked already, and not have stored its head yet.
#
# Hence an entry that was posted while a signalled one isn't known to be taken needs no signal yet, but
# must not be forgotten. It is held back, and each round looks at the head again:
#   all is taken                     the host came by itself: there is nothing to tell
#   what was signalled is taken,     the host is through with that signal, and perhaps asleep again:
#   and something isn't              signal
#   what was signalled isn't taken   the host is still to come: hold on
# At most one signal is on its way to a host that keeps up. With one command at a time the head has
# always moved before the next completion, so the signal comes at once.
#
# Whatever the head says (heads by message are late, a host may be slow to store one or never do so),
# nothing is held longer than HOLD_NS, and a thread that rests sleeps no longer than that. Too many
# signals are harmless, so every doubt ends in one.
#
# A RAISE may be put off too, where the host gets more done that way: moderation.pxd says when, and for
# how long at most. To the host that is a device that completes later.
#
# Interrupt Coalescing (NVMe Base 2.0, 5.27.1.6) comes before: with fewer entries than its threshold
# a queue isn't even looked at until its time is over. Errors and full queues don't wait for that.
# Entries are counted for each queue, also where queues share a vector.

from libc.stdint cimport uint32_t, uint64_t

from shadowbell.dataplane.layout cimport CompletionQueue, EngineState, ThreadState

cdef enum Verdict:
    DROP
    RAISE
    HOLD


cdef inline Verdict judge(uint32_t waiting, uint32_t unsignalled) noexcept nogil:
    """What to do about unsignalled entries when the host hasn't taken the waiting last ones."""
    if waiting == 0:
        return DROP
    return HOLD if waiting > unsignalled else RAISE


cdef inline void want_interrupt(ThreadState *thread, CompletionQueue *cq) noexcept nogil:
    """An entry was posted: the end of the round decides about its interrupt."""
    if cq.vector < 0:
        return
    if cq.unsignalled == 0:
        cq.since = thread.now
        cq.next_interrupt = thread.interrupts
        thread.interrupts = cq
    cq.unsignalled += 1


cdef void raise_interrupts(ThreadState *thread) noexcept nogil
cdef void flush_interrupts(ThreadState *thread, EngineState *engine,
                           CompletionQueue *only) noexcept nogil
cdef uint64_t next_interrupt_ns(ThreadState *thread) noexcept nogil
