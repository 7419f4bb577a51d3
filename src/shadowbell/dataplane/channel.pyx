"""The client's socket: doorbell writes are taken here, all other messages are the control plane's.

One side at a time owns a channel. An IOThread owns it as long as nothing but doorbell writes
arrive; at any other message (or the stream's end) it leaves the bytes in the buffer, gives the
channel to the control plane and tells it. The control plane hands it back when it has answered. So
messages take effect in the order in which they were sent, whoever handles them.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

from shadowbell.dataplane.doorbells cimport post_register
from shadowbell.dataplane.events cimport push_event, signal_fd
from shadowbell.dataplane.includes.cpu cimport fence
from shadowbell.dataplane.kick cimport ring_queue
from shadowbell.dataplane.layout cimport (
    CHANNEL_BUFFER,
    CHANNEL_FDS,
    EVENT_INVALID_REGISTER,
    EVENT_INVALID_VALUE,
    PAGE_SIZE,
    Channel,
    CompletionQueue,
    EngineState,
    SubmissionQueue,
    ThreadState,
)


cdef extern from *:
    """
    #include <sys/socket.h>
    #include <errno.h>
    #include <string.h>
    #include <unistd.h>

    /* recvmsg with room for descriptors; their number goes to *count. MSG_CTRUNC counts as an
       error: a descriptor was lost, and the messages no longer say what the client meant. The
       control buffer ends with the last descriptor we have room for: CMSG_SPACE would pad it, and
       the kernel uses the padding for one more. */
    static ssize_t sb_receive(int fd, void *to, size_t room, int *fds, unsigned max_fds,
                              uint32_t *count)
    {
        union { char bytes[CMSG_SPACE(sizeof(int) * 64)]; struct cmsghdr align; } control;
        struct iovec piece = { to, room };
        struct msghdr message = { 0 };
        message.msg_iov = &piece;
        message.msg_iovlen = 1;
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_LEN(sizeof(int) * max_fds);
        ssize_t n = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        *count = 0;
        if (n <= 0)
            return n;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
            if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
                continue;
            unsigned n_fds = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            memcpy(fds + *count, CMSG_DATA(c), n_fds * sizeof(int));
            *count += n_fds;
        }
        if (message.msg_flags & MSG_CTRUNC) {
            while (*count)
                close(fds[--*count]);
            errno = EMSGSIZE;
            return -1;
        }
        return n;
    }
    static ssize_t sb_send(int fd, const void *data, size_t size)
    { return send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL); }
    """
    ssize_t sb_receive(int fd, void *to, size_t room, int *fds, unsigned max_fds,
                       uint32_t *count) noexcept nogil
    ssize_t sb_send(int fd, const void *data, size_t size) noexcept nogil

# libvfio-user, docs/vfio-user.rst: Header, VFIO_USER_REGION_WRITE.
cdef enum:
    HEADER_SIZE = 16
    REGION_WRITE = 10
    FLAG_TYPE = 0xF
    FLAG_REPLY = 1
    FLAG_NO_REPLY = 0x10
    DOORBELL_MESSAGE = 36      # header, offset, region, count, four bytes
    DOORBELL_REPLY = 32
    DOORBELL_BASE = 0x1000     # in BAR0
    BAR0 = 0

cdef packed struct Header:
    uint16_t message_id
    uint16_t command
    uint32_t size
    uint32_t flags
    uint32_t error

cdef packed struct RegionWrite:
    Header header
    uint64_t offset
    uint32_t region
    uint32_t count
    uint32_t value


cdef int take_doorbells(ThreadState *current, Channel *channel, uint32_t *size) noexcept nogil:
    """Carry out the doorbell writes at the buffer's front; what comes then is the return value.

    size: the bytes of a message for the control plane.
    """
    cdef Header header
    cdef RegionWrite message
    cdef uint32_t left
    while True:
        left = channel.end - channel.start
        if left < HEADER_SIZE:
            return PARSED_NOTHING
        memcpy(&header, channel.buffer + channel.start, HEADER_SIZE)
        if header.size < HEADER_SIZE or header.size > CHANNEL_BUFFER:
            return PARSED_BROKEN
        if left < header.size:
            return PARSED_NOTHING
        size[0] = header.size
        if not (header.command == REGION_WRITE and header.size == DOORBELL_MESSAGE
                and header.flags & FLAG_TYPE == 0):
            return PARSED_MESSAGE
        memcpy(&message, channel.buffer + channel.start, DOORBELL_MESSAGE)
        if not (message.region == BAR0 and message.count == 4 and message.offset & 3 == 0
                and message.offset - DOORBELL_BASE < PAGE_SIZE
                and (channel.fd_count == 0
                     or channel.fd_mark > channel.start + DOORBELL_MESSAGE)):
            return PARSED_MESSAGE
        if not header.flags & FLAG_NO_REPLY and not reply(channel, &message):
            return PARSED_BROKEN
        channel.start += DOORBELL_MESSAGE
        doorbell_written(current, channel.engine, message.offset - DOORBELL_BASE, message.value)


cdef bint reply(Channel *channel, RegionWrite *message) noexcept nogil:
    """Answer a doorbell write that waits for it: cloud-hypervisor's do, QEMU's are posted."""
    message.header.size = DOORBELL_REPLY
    message.header.flags = FLAG_REPLY
    message.header.error = 0
    return sb_send(channel.fd, message, DOORBELL_REPLY) == DOORBELL_REPLY


cdef int receive(Channel *channel) noexcept nogil:
    """Read what the socket holds: 1 something came, 0 nothing is there, -1 the stream ended.

    Descriptors end a read in the kernel, so they belong to the message that holds its last byte.
    Nothing more is read before all whole messages are taken, and of a message that has descriptors
    only its rest, so there is one such message at most.
    """
    cdef ssize_t count
    cdef Header header
    cdef uint32_t left = channel.end - channel.start
    cdef uint32_t most
    if channel.start == channel.end:
        channel.start = channel.end = 0
    elif channel.end > CHANNEL_BUFFER // 2:
        memmove(channel.buffer, channel.buffer + channel.start, channel.end - channel.start)
        if channel.fd_count:
            channel.fd_mark -= channel.start
        channel.end -= channel.start
        channel.start = 0
    if channel.end == CHANNEL_BUFFER:
        return 0
    most = CHANNEL_BUFFER - channel.end
    if channel.fd_count:
        header.size = HEADER_SIZE
        if left >= HEADER_SIZE:
            memcpy(&header, channel.buffer + channel.start, HEADER_SIZE)
        most = min(most, header.size - left)
    cdef uint32_t fds = 0
    cdef uint32_t room = CHANNEL_FDS - channel.fd_count
    while True:
        count = sb_receive(channel.fd, channel.buffer + channel.end, most,
                           channel.fds + channel.fd_count, room, &fds)
        if count >= 0 or errno != EINTR:
            break
    if count > 0:
        channel.end += <uint32_t> count
        if fds:
            channel.fd_count += fds
            channel.fd_mark = channel.end
        return 1
    if count < 0 and errno == EAGAIN:
        return 0
    channel.error = -1 if count == 0 else errno
    return -1


cdef void doorbell_written(ThreadState *current, EngineState *engine, uint64_t offset,
                           uint32_t value) noexcept nogil:
    """A doorbell register was written (NVMe Base 2.0, 3.1.3.24; NVMe over PCIe 1.0, 3.1.2)."""
    cdef uint32_t qid = <uint32_t> (offset >> 3)
    cdef bint head = offset & 4 != 0
    cdef SubmissionQueue *sq = NULL
    cdef CompletionQueue *cq = NULL
    cdef uint32_t i
    if qid <= engine.max_queues:
        sq = engine.sqs[qid]
        cq = engine.cqs[qid]
    if (head and cq == NULL) or (not head and sq == NULL):
        push_event(engine, EVENT_INVALID_REGISTER, <uint16_t> min(qid, <uint32_t> 0xFFFF), head,
                   0, 0, 0)
        return
    engine.counters[qid].doorbells += 1
    if head:
        if value >= cq.entries:
            push_event(engine, EVENT_INVALID_VALUE, <uint16_t> qid, 1, 0, 0, 0)
            return
        post_register(cq.head_doorbell, cq.head_eventidx != NULL, &cq.posted, value)
        fence()  # whoever stalls sets it, then reads the head again; one of us sees the other's
        if cq.stalled:
            if qid == 0:
                signal_fd(engine.notify_fd)
            for i in range(1, engine.max_queues + 1):
                if engine.sqs[i] != NULL and engine.sqs[i].cq == cq:
                    ring_queue(current, engine.sqs[i])
        return
    if value >= sq.entries:
        push_event(engine, EVENT_INVALID_VALUE, <uint16_t> qid, 0, 0, 0, 0)
        return
    post_register(sq.tail_doorbell, sq.tail_eventidx != NULL, &sq.posted, value)
    if qid == 0:
        signal_fd(engine.notify_fd)
    else:
        ring_queue(current, sq)
