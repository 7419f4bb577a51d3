# What an IOThread has in its io_uring, besides the back ends' requests and sources: its kicks, the
# clients' sockets and the doorbells' ioeventfds. What a completion's user_data points to is told by
# its low bits.

from libc.stdint cimport uint64_t

from shadowbell.block.sources cimport TAG_IGNORE, ring_entry
from shadowbell.dataplane.includes.uring cimport (
    POLLIN,
    POLLRDHUP,
    io_uring_prep_cancel64,
    io_uring_prep_poll_add,
    io_uring_prep_read,
    io_uring_sqe,
    io_uring_sqe_set_data64,
)
from shadowbell.dataplane.layout cimport Channel, SubmissionQueue, ThreadState

cdef enum Tag:
    TAG_REQUEST = 0
    TAG_KICK = 1
    TAG_CHANNEL = 2
    TAG_IOEVENTFD = 4
    TAG_WIDE = 6
    TAG_MASK = 7


cdef inline io_uring_sqe *next_sqe(ThreadState *thread) noexcept nogil:
    return ring_entry(&thread.block)


cdef inline void await_kick(ThreadState *thread) noexcept nogil:
    cdef io_uring_sqe *sqe = next_sqe(thread)
    io_uring_prep_read(sqe, thread.kick_fd, &thread.kick_value, sizeof(uint64_t), 0)
    io_uring_sqe_set_data64(sqe, TAG_KICK)


cdef inline void await_channel(ThreadState *thread, Channel *channel) noexcept nogil:
    cdef io_uring_sqe *sqe = next_sqe(thread)
    io_uring_prep_poll_add(sqe, channel.fd, POLLIN | POLLRDHUP)
    io_uring_sqe_set_data64(sqe, <uint64_t> channel | TAG_CHANNEL)
    channel.polled = True


cdef inline void await_ioeventfd(ThreadState *thread, SubmissionQueue *sq) noexcept nogil:
    cdef io_uring_sqe *sqe = next_sqe(thread)
    io_uring_prep_read(sqe, sq.ioeventfd, &sq.ioeventfd_value, sizeof(uint64_t), 0)
    io_uring_sqe_set_data64(sqe, <uint64_t> sq | TAG_IOEVENTFD)
    sq.ioeventfd_awaited = True
    sq.ioeventfd_cancelled = False


cdef inline void await_wide(ThreadState *thread) noexcept nogil:
    """Have a completion in the ring of NVMe commands wake us."""
    cdef io_uring_sqe *sqe = next_sqe(thread)
    io_uring_prep_poll_add(sqe, thread.block.wide.ring_fd, POLLIN)
    io_uring_sqe_set_data64(sqe, TAG_WIDE)
    thread.wide_awaited = True


cdef inline void cancel(ThreadState *thread, uint64_t data) noexcept nogil:
    """What is cancelled still completes, and says so under its own tag."""
    cdef io_uring_sqe *sqe = next_sqe(thread)
    io_uring_prep_cancel64(sqe, data, 0)
    io_uring_sqe_set_data64(sqe, TAG_IGNORE)


cdef inline void cancel_ioeventfd(ThreadState *thread, SubmissionQueue *sq) noexcept nogil:
    if not sq.ioeventfd_cancelled:
        sq.ioeventfd_cancelled = True
        cancel(thread, <uint64_t> sq | TAG_IOEVENTFD)
