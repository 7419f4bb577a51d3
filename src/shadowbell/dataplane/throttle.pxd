# The limits of a namespace: commands and bytes a second, one budget for all IOThreads.
#
# Time is what is shared out. A limit is the time, in ticks, that a command takes of it; `next` is when
# the next command may start. Whoever has a command to start adds its cost to `next` and so has a time of
# its own, in one atomic step and in the order of coming: no thread can be overtaken by others for good.
# Time that nobody asked for stays to be had for as long as `burst`.
#
# A command whose time hasn't come is held: a copy of its entry, beside its queue, with a completion slot
# reserved. It isn't decoded, so it takes no request, no bounce buffer and no pointer into the host's
# memory. That is why it is held and not left in its queue: the queue's other namespaces go on, and Linux
# shares its queues among all of a controller's. What is held is bounded by the completion queue, whose
# host is told of a full one as ever.
#
# Of each queue only the oldest held command of a namespace has its time; the next takes one when that
# starts. So every queue that waits has one turn in the order of time: a queue with a thousand commands
# gets no more than one with a single one.
#
# The flows of a thread lie in a leftist heap by the time of their first command, and the thread sleeps
# until the earliest. An armed queue stays armed: all of its commands have been fetched.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from shadowbell.dataplane.layout cimport (
    EngineState,
    Flow,
    Held,
    NamespaceEntry,
    SubmissionQueue,
    ThreadState,
)

cdef enum:
    BYTE_SHIFT = 20            # a byte's cost is in 2**-20 ticks

cdef Held *new_held() except NULL
cdef void free_held(Held *held) noexcept nogil
cdef bint must_wait(ThreadState *thread, SubmissionQueue *sq, NamespaceEntry *ns,
                    const uint8_t *sqe) noexcept nogil
cdef bint take_held(ThreadState *thread, uint8_t *sqe, SubmissionQueue **sq,
                    uint64_t *arrived) noexcept nogil
cdef void hold_again(ThreadState *thread, SubmissionQueue *sq) noexcept nogil
cdef void let_go(ThreadState *thread, EngineState *engine, SubmissionQueue *sq) noexcept nogil
cdef bint pop_any(Held *held, uint32_t index, uint8_t *sqe, uint64_t *arrived) noexcept nogil


cdef inline uint32_t held_of(SubmissionQueue *sq) noexcept nogil:
    """Commands that a queue holds; the admin queue holds none."""
    return sq.held.count if sq.held != NULL else 0


cdef inline uint64_t held_ticks(ThreadState *thread) noexcept nogil:
    """Ticks until the earliest held command may start; something is held."""
    return thread.held.due - thread.now if thread.held.due > thread.now else 0
