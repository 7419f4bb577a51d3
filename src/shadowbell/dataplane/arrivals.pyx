"""What arrives in an IOThread's ring: ends of commands, kicks, ioeventfds and the clients' messages."""

from libc.stdint cimport uint32_t, uint64_t

from shadowbell.block.backend cimport Source
from shadowbell.block.sources cimport TAG_SOURCE, polled
from shadowbell.dataplane.channel cimport PARSED_NOTHING, receive, take_doorbells
from shadowbell.dataplane.commands cimport advance_command
from shadowbell.dataplane.events cimport signal_fd
from shadowbell.dataplane.includes.cpu cimport store32
from shadowbell.dataplane.includes.uring cimport (
    io_uring,
    io_uring_cq_advance,
    io_uring_cqe,
    io_uring_peek_batch_cqe,
)
from shadowbell.dataplane.kick cimport activate
from shadowbell.dataplane.layout cimport (
    OWNER_CONTROL,
    OWNER_THREAD,
    Channel,
    Request,
    SubmissionQueue,
    ThreadState,
)
from shadowbell.dataplane.ring cimport (
    TAG_CHANNEL,
    TAG_IOEVENTFD,
    TAG_KICK,
    TAG_MASK,
    TAG_REQUEST,
    TAG_WIDE,
    await_channel,
    await_ioeventfd,
    await_kick,
)

cdef enum:
    REAP = 64
    READS = 8                  # of a client's socket in a round


cdef unsigned reap(ThreadState *thread, io_uring *ring) noexcept nogil:
    """Take what a ring has ready, up to a batch; returns how much it was."""
    cdef io_uring_cqe *cqes[REAP]
    cdef unsigned count = io_uring_peek_batch_cqe(ring, cqes, REAP)
    cdef unsigned i
    cdef uint64_t data
    for i in range(count):
        data = cqes[i].user_data
        if data & TAG_MASK == TAG_REQUEST:
            advance_command(thread, <Request *> data, cqes[i].res)
        elif data & TAG_MASK == TAG_KICK:
            await_kick(thread)
        elif data & TAG_MASK == TAG_CHANNEL:
            channel_ready(thread, <Channel *> (data & ~(<uint64_t> TAG_MASK)))
        elif data & TAG_MASK == TAG_IOEVENTFD:
            ioeventfd_ready(thread, <SubmissionQueue *> (data & ~(<uint64_t> TAG_MASK)))
        elif data & TAG_MASK == TAG_SOURCE:
            polled(&thread.block, <Source *> (data & ~(<uint64_t> TAG_MASK)), cqes[i].res)
        elif data & TAG_MASK == TAG_WIDE:
            thread.wide_awaited = False
    io_uring_cq_advance(ring, count)
    return count


cdef void ioeventfd_ready(ThreadState *thread, SubmissionQueue *sq) noexcept nogil:
    """The client wrote a shadowed doorbell's eventfd: the value is in the shadow."""
    sq.ioeventfd_awaited = False
    if sq.engine == thread.pausing or sq.thread != thread:
        return  # cancelled, or who takes the queue up looks at it anyway
    sq.counters.ioeventfd_wakeups += 1
    activate(thread, sq)
    await_ioeventfd(thread, sq)


cdef void channel_ready(ThreadState *thread, Channel *channel) noexcept nogil:
    channel.polled = False
    if channel.held or channel.owner != OWNER_THREAD:
        channel.ready = True  # looked at when it is ours again
        return
    read_channel(thread, channel)


cdef void read_channel(ThreadState *thread, Channel *channel) noexcept nogil:
    """Take doorbell writes; hand the channel to the control plane at anything else."""
    cdef uint32_t size
    cdef int parsed, received, rounds = 0
    while True:
        parsed = take_doorbells(thread, channel, &size)
        if parsed != PARSED_NOTHING:
            break
        received = 0 if rounds == READS else receive(channel)  # others want their turn too
        rounds += 1
        if received == 0:
            if not channel.polled:
                await_channel(thread, channel)
            return
        if received < 0:
            break
    store32(&channel.owner, OWNER_CONTROL)
    store32(&channel.waiting, 1)
    signal_fd(channel.engine.notify_fd)


cdef void read_if_ours(ThreadState *thread, Channel *channel) noexcept nogil:
    if channel != NULL and channel.owner == OWNER_THREAD and not channel.held:
        channel.ready = False
        read_channel(thread, channel)
