# How a back end that isn't io_uring lives in an IOThread.
#
# Its state there is made and given back by BlockState.enter and .leave, which run on that thread, and
# is found by BlockContext.index. Everything below is called on the IOThread itself; only post() and
# post_result() are for any thread.
#
# A Source is a file descriptor that the thread's ring polls, a timer, or both. ready() is called with
# the poll's events, or with 0 when the time has come; it may end requests by context.complete(). The
# poll is level-triggered: while the descriptor stays ready, ready() is called once a round.

from libc.stdint cimport uint32_t, uint64_t

from shadowbell.block.backend cimport BlockContext, BlockRequest, Note, Source
from shadowbell.dataplane.includes.uring cimport (
    io_uring_get_sqe,
    io_uring_sqe,
    io_uring_submit,
)

cdef enum:
    # The low bits of user_data in the ring, beside those of ring.pxd.
    TAG_IGNORE = 3
    TAG_SOURCE = 5


cdef inline io_uring_sqe *ring_entry(BlockContext *context) noexcept nogil:
    """A free ring entry; the ring is larger than all that can be under way."""
    cdef io_uring_sqe *sqe = io_uring_get_sqe(&context.ring)
    while sqe == NULL:
        io_uring_submit(&context.ring)
        sqe = io_uring_get_sqe(&context.ring)
    return sqe


cdef void watch(BlockContext *context, Source *source, int fd, uint32_t events) noexcept nogil
cdef void unwatch(BlockContext *context, Source *source) noexcept nogil
cdef void polled(BlockContext *context, Source *source, int res) noexcept nogil
cdef void set_timer(BlockContext *context, Source *source, uint64_t due) noexcept nogil
cdef void run_timers(BlockContext *context, uint64_t now) noexcept nogil
cdef void take_notes(BlockContext *context) noexcept nogil
cdef void post(BlockContext *context, Note *note) noexcept nogil
cdef void await_notes(BlockContext *context, uint32_t count) noexcept nogil
cdef bint noted(BlockContext *context) noexcept nogil
cdef void post_result(BlockContext *context, BlockRequest *request, int result) noexcept nogil
