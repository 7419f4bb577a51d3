"""NBD commands on an IOThread: sent by libnbd, never waited for (see nbd_connection.pxd).

A command is one request to the server at a time: what is larger than the server takes goes in parts,
one after the other. libnbd moves a single piece of memory straight; more pieces go through a bounce
buffer. Commands whose connection breaks wait for the next one and are sent again: each of them may be
done twice without harm.
"""

from libc.errno cimport EAGAIN, EFAULT, EINVAL, EIO, EPERM, EROFS, ESHUTDOWN
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, mmap

from shadowbell.block.backend cimport (
    BLOCK_FUA,
    BLOCK_READ,
    BLOCK_UNMAP,
    BOUNCE_SIZE,
    BlockContext,
    BlockRequest,
    Note,
    Source,
    bounce_give,
)
from shadowbell.block.includes.libnbd cimport (
    LIBNBD_AIO_DIRECTION_READ,
    LIBNBD_AIO_DIRECTION_WRITE,
    LIBNBD_CMD_FLAG_FUA,
    LIBNBD_CMD_FLAG_NO_HOLE,
    nbd_aio_flush,
    nbd_aio_get_direction,
    nbd_aio_is_closed,
    nbd_aio_is_dead,
    nbd_aio_notify_read,
    nbd_aio_notify_write,
    nbd_aio_pread,
    nbd_aio_pwrite,
    nbd_aio_trim,
    nbd_aio_zero,
    nbd_close,
    nbd_completion_callback,
    nbd_get_errno,
)
from shadowbell.block.pieces cimport scatter
from shadowbell.block.sources cimport post, unwatch, watch
from shadowbell.dataplane.includes.cpu cimport store32
from shadowbell.dataplane.includes.uring cimport POLLIN, POLLOUT


cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd_write(int fd, uint64_t value)

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_DONTWAIT
        MSG_PEEK
    ssize_t recv(int fd, void *buffer, size_t length, int flags)

cdef extern from "<sys/ioctl.h>" nogil:
    enum:
        FIONREAD
    int ioctl(int fd, unsigned long request, int *value)

cdef enum:
    REPLY_HEADER = 16
    REPLIES = 64               # of one connection before others have their turn
    LARGEST_RANGE = 1 << 28    # bytes of a trim or of zeros: none is to take for ever

# A read-only page range of zeros, shared by all.
cdef void *zeros = mmap(NULL, BOUNCE_SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
if zeros == MAP_FAILED:
    raise MemoryError("no memory for the block of zeros")


cdef void send(Connection *c, BlockRequest *request) noexcept nogil:
    """Give libnbd the next part of a request, or keep it until there is a connection."""
    cdef nbd_completion_callback callback
    cdef uint64_t offset = request.offset + request.done
    cdef uint64_t left = request.length - request.done
    cdef uint64_t part = min(left, <uint64_t> c.disk.largest)
    cdef uint32_t fua = LIBNBD_CMD_FLAG_FUA if (
        request.flags & BLOCK_FUA and c.disk.can_fua) else 0
    cdef uint8_t *data
    cdef int64_t cookie
    if c.handle == NULL:
        push(&c.waiting, request)
        return
    callback.callback = request_ended
    callback.user_data = request
    callback.free = NULL
    push(&c.sent, request)  # before the call: a connection that breaks in it ends its commands
    if request.stage == MOVING:
        data = <uint8_t *> request.bounce
        if data == NULL:
            data = <uint8_t *> request.iov[0].iov_base
        if request.op == BLOCK_READ:
            cookie = nbd_aio_pread(c.handle, data + request.done, part, offset, callback, 0)
        else:
            cookie = nbd_aio_pwrite(c.handle, data + request.done, part, offset, callback, fua)
    elif request.stage == WRITING_ZEROS:
        part = min(part, <uint64_t> BOUNCE_SIZE)
        cookie = nbd_aio_pwrite(c.handle, zeros, part, offset, callback, fua)
    elif request.stage == SYNCING:
        part = 0
        cookie = nbd_aio_flush(c.handle, callback, 0)
    else:
        part = min(left, <uint64_t> LARGEST_RANGE)
        if request.stage == TRIMMING:
            cookie = nbd_aio_trim(c.handle, part, offset, callback, fua)
        else:
            cookie = nbd_aio_zero(c.handle, part, offset, callback,
                                  fua if request.flags & BLOCK_UNMAP
                                  else fua | LIBNBD_CMD_FLAG_NO_HOLE)
    if cookie >= 0:
        request.single.iov_len = part
        return
    remove(&c.sent, request)
    if broken(c):
        push(&c.waiting, request)
        settle_later(c)
    else:
        finish(c, request, -nbd_get_errno())


cdef void settle_later(Connection *c) noexcept nogil:
    if not c.settling and not c.swept:
        c.swept = True
        post(c.context, &c.sweep)


cdef int request_ended(void *user_data, int *error) noexcept nogil:
    """libnbd has done with a part. Nothing of libnbd's may be called here."""
    cdef BlockRequest *request = <BlockRequest *> user_data
    cdef Disk *disk = <Disk *> request.backend.own
    cdef Connection *c = disk.home if disk.home != NULL else (
        &disk.connections[request.context.index])
    remove(&c.sent, request)
    request.result = -error[0]
    push(&c.ended, request)
    return 1  # libnbd need not keep it


cdef inline bint broken(Connection *c) noexcept nogil:
    return nbd_aio_is_dead(c.handle) or nbd_aio_is_closed(c.handle)


cdef void socket_ready(BlockContext *context, Source *source, uint32_t events) noexcept nogil:
    cdef Connection *c = <Connection *> source.owner
    cdef BlockRequest *last
    cdef int left = 0
    cdef uint32_t i
    if c.handle == NULL:
        return
    if events & POLLOUT and nbd_aio_get_direction(c.handle) & LIBNBD_AIO_DIRECTION_WRITE:
        nbd_aio_notify_write(c.handle)
    if events != POLLOUT:
        if c.exact:
            ioctl(c.socket.fd, FIONREAD, &left)
        for i in range(REPLIES):
            if not nbd_aio_get_direction(c.handle) & LIBNBD_AIO_DIRECTION_READ:
                break
            last = c.ended.last
            nbd_aio_notify_read(c.handle)
            if c.ended.last == last or c.sent.first == NULL:
                break
            # libnbd before 1.16 sends nothing after it was told in vain that there is more to read.
            if c.exact:
                left -= reply_length(c.ended.last)
                if left <= 0:
                    break
            elif not readable(c):
                break
    settle(c)


cdef inline int reply_length(BlockRequest *request) noexcept nogil:
    """Bytes of a simple reply."""
    if request.stage == MOVING and request.op == BLOCK_READ and request.result == 0:
        return REPLY_HEADER + <int> request.single.iov_len
    return REPLY_HEADER


cdef bint readable(Connection *c) noexcept nogil:
    cdef char byte
    return recv(c.socket.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0


cdef void settle(Connection *c) noexcept nogil:
    """Go on with the commands that libnbd has done with, and see whether the connection lives."""
    cdef BlockRequest *request
    cdef bint fault = False
    if c.settling:
        return
    c.settling = True
    while True:
        if c.handle != NULL and broken(c):
            # Memory of the guest's that is no longer there fails every time it is tried.
            fault = nbd_aio_is_dead(c.handle) and nbd_get_errno() == EFAULT
            lose(c)
        request = pop(&c.ended)
        if request == NULL:
            break
        if request.result == 0:
            part_ended(c, request)
        elif fault:
            finish(c, request, -EFAULT)
        elif c.handle == NULL:
            wait_for_connection(c, request)
        elif request.result == -ESHUTDOWN:
            lose(c)
            wait_for_connection(c, request)
        else:
            finish(c, request, request.result)
    c.settling = False
    if c.handle != NULL:
        watch_socket(c)


cdef void part_ended(Connection *c, BlockRequest *request) noexcept nogil:
    if request.stage == SYNCING:
        finish(c, request, 0)
        return
    request.done += request.single.iov_len
    if request.done < request.length:
        send(c, request)
    elif request.flags & BLOCK_FUA and not c.disk.can_fua and c.disk.can_flush:
        request.stage = SYNCING
        send(c, request)
    else:
        finish(c, request, 0)


cdef void take_sweep(BlockContext *context, Note *note) noexcept nogil:
    cdef Connection *c = <Connection *> note.owner
    c.swept = False
    if c.context == context:
        settle(c)


cdef void watch_socket(Connection *c) noexcept nogil:
    cdef uint32_t events = POLLIN
    if nbd_aio_get_direction(c.handle) & LIBNBD_AIO_DIRECTION_WRITE:
        events |= POLLOUT
    watch(c.context, &c.socket, c.socket.fd, events)


cdef void finish(Connection *c, BlockRequest *request, int result) noexcept nogil:
    if result == -EPERM:
        result = -EROFS
    elif result == -EINVAL:
        result = -EIO  # we ask nothing invalid: the disk has shrunk
    request.result = result
    if request.context == c.context:
        deliver(c.context, request)
    else:
        request.note.take = take_finished
        post(request.context, &request.note)


cdef void take_finished(BlockContext *context, Note *note) noexcept nogil:
    deliver(context, <BlockRequest *> note)


cdef void deliver(BlockContext *context, BlockRequest *request) noexcept nogil:
    """On the IOThread that the request came from."""
    cdef Disk *disk = <Disk *> request.backend.own
    if request.bounce != NULL:
        if request.op == BLOCK_READ and request.result == 0:
            scatter(request)
        bounce_give(context, request.bounce)
        request.bounce = NULL
    if request == &disk.control:
        eventfd_write(disk.control_fd, 1)
    else:
        context.complete(context, request, request.result)


cdef void lose(Connection *c) noexcept nogil:
    """Close the connection; what was sent is sent again over the next."""
    cdef Queue later = take_all(&c.waiting)
    cdef BlockRequest *request
    unwatch(c.context, &c.socket)
    nbd_close(c.handle)  # from here on nothing touches the guest's memory
    c.handle = NULL
    request = pop(&c.sent)
    while request != NULL:
        push(&c.waiting, request)
        request = pop(&c.sent)
    request = pop(&later)
    while request != NULL:
        push(&c.waiting, request)
        request = pop(&later)
    store32(&c.wanted, 1)
    eventfd_write(c.disk.wanted_fd, 1)
    if c.urged:
        fail_waiting(c)


cdef void wait_for_connection(Connection *c, BlockRequest *request) noexcept nogil:
    if c.urged:
        finish(c, request, -EAGAIN)
    else:
        push(&c.waiting, request)


cdef void fail_waiting(Connection *c) noexcept nogil:
    cdef Queue waiting = take_all(&c.waiting)
    cdef BlockRequest *request = pop(&waiting)
    while request != NULL:
        finish(c, request, -EAGAIN)
        request = pop(&waiting)
