"""NBD commands on an IOThread: sent by libnbd, never waited for (see nbd_connection.pxd).

A command is one request to the server at a time: what is larger than the server takes goes in parts,
one after the other. libnbd moves a single piece of memory straight; more pieces go through a bounce
buffer. Commands whose connection breaks wait for the next one and are sent again: each of them may be
done twice without harm.
"""

from libc.errno cimport EAGAIN, EFAULT, EINVAL, EIO, EPERM, EROFS, ESHUTDOWN, ETIMEDOUT
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, mmap

from shadowbell.block.backend cimport (
    BLOCK_BUSY,
    BLOCK_DISCARD,
    BLOCK_DONE,
    BLOCK_FLUSH,
    BLOCK_FUA,
    BLOCK_PENDING,
    BLOCK_READ,
    BLOCK_UNMAP,
    BLOCK_WRITE,
    BOUNCE_SIZE,
    BlockContext,
    BlockRequest,
    BlockState,
    MAX_CONTEXTS,
    Note,
    Source,
    bounce_give,
    bounce_take,
)
from shadowbell.block.includes.libnbd cimport (
    LIBNBD_AIO_DIRECTION_READ,
    LIBNBD_AIO_DIRECTION_WRITE,
    LIBNBD_CMD_FLAG_FUA,
    LIBNBD_CMD_FLAG_NO_HOLE,
    nbd_aio_flush,
    nbd_aio_get_direction,
    nbd_aio_get_fd,
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
    nbd_get_structured_replies_negotiated,
    nbd_get_tls_negotiated,
    nbd_handle,
)
from shadowbell.block.pieces cimport gather, scatter
from shadowbell.block.sources cimport post, set_timer, unwatch, watch
from shadowbell.dataplane.includes.cpu cimport (
    clock_ns,
    exchange32,
    exchange_ptr,
    store32,
)
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

cdef enum Stage:
    MOVING                     # reading or writing the data
    TRIMMING
    ZEROING                    # the server writes zeros
    WRITING_ZEROS              # we do, because it can't
    SYNCING                    # a flush, of its own or behind a FUA that the server doesn't know

cdef enum:
    REPLY_HEADER = 16
    REPLIES = 64               # of one connection before others have their turn
    LARGEST_RANGE = 1 << 28    # bytes of a trim or of zeros: none is to take for ever
    # How long an engine that pauses waits for a server that doesn't answer.
    PATIENCE_NS = 10000000000

cdef uint64_t NEVER = ~(<uint64_t> 0)

# A read-only page range of zeros, shared by all.
cdef void *zeros = mmap(NULL, BOUNCE_SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
if zeros == MAP_FAILED:
    raise MemoryError("no memory for the block of zeros")


# --- lists of requests ------------------------------------------------------------------------------

cdef inline void push(Queue *queue, BlockRequest *request) noexcept nogil:
    request.next = NULL
    request.previous = queue.last
    if queue.last != NULL:
        queue.last.next = request
    else:
        queue.first = request
    queue.last = request


cdef inline void remove(Queue *queue, BlockRequest *request) noexcept nogil:
    if request.previous != NULL:
        request.previous.next = request.next
    else:
        queue.first = request.next
    if request.next != NULL:
        request.next.previous = request.previous
    else:
        queue.last = request.previous


cdef inline BlockRequest *pop(Queue *queue) noexcept nogil:
    cdef BlockRequest *request = queue.first
    if request != NULL:
        remove(queue, request)
    return request


cdef Queue take_all(Queue *queue) noexcept nogil:
    cdef Queue taken = queue[0]
    queue.first = queue.last = NULL
    return taken


# --- from the data plane ----------------------------------------------------------------------------

cdef int nbd_submit(BlockContext *context, BlockRequest *request) noexcept nogil:
    cdef Disk *disk = <Disk *> request.backend.own
    cdef Connection *c = <Connection *> request.backend.locals[context.index]
    request.context = context
    request.done = 0
    request.bounce = NULL
    request.result = 0
    if request.op == BLOCK_READ or request.op == BLOCK_WRITE:
        request.stage = MOVING
    elif request.op == BLOCK_FLUSH:
        if not disk.can_flush:
            return BLOCK_DONE  # what the server has, it keeps
        request.stage = SYNCING
    elif request.op == BLOCK_DISCARD:
        if not disk.can_trim:
            return BLOCK_DONE  # a hint that nobody can take
        request.stage = TRIMMING
    else:
        request.stage = ZEROING if disk.can_zero else WRITING_ZEROS
    if c.context == context and c.handle == NULL and c.urged:
        request.result = -EAGAIN
        return BLOCK_DONE
    if request.stage == MOVING and request.niov > 1:
        request.bounce = bounce_take(context)
        if request.bounce == NULL:
            return BLOCK_BUSY
        if request.op == BLOCK_WRITE:
            gather(request)
    if disk.timeout:
        request.start = clock_ns()
    if c.context != context:
        request.note.take = take_forwarded
        request.note.owner = c
        post(c.context, &request.note)
        return BLOCK_PENDING
    begin(c, request)
    after_submit(c)
    return BLOCK_PENDING


cdef int nbd_advance(BlockContext *context, BlockRequest *request, int res) noexcept nogil:
    return BLOCK_DONE  # nothing of ours but polls goes through the ring


cdef void take_forwarded(BlockContext *context, Note *note) noexcept nogil:
    """Another IOThread's request, on the one that has the connection."""
    cdef Connection *c = <Connection *> note.owner
    cdef BlockRequest *request = <BlockRequest *> note
    if c.handle == NULL and c.urged:
        finish(c, request, -EAGAIN)
        return
    begin(c, request)
    after_submit(c)


cdef void begin(Connection *c, BlockRequest *request) noexcept nogil:
    if c.disk.timeout and c.clock.due == 0:
        set_timer(c.context, &c.clock, request.start + c.disk.timeout)
    send(c, request)


cdef void after_submit(Connection *c) noexcept nogil:
    """Look after what sending brought, but not from within the sender's call."""
    if c.ended.first != NULL and not c.settling and not c.swept:
        c.swept = True
        post(c.context, &c.sweep)
    elif c.handle != NULL:
        watch_socket(c)


cdef void take_sweep(BlockContext *context, Note *note) noexcept nogil:
    cdef Connection *c = <Connection *> note.owner
    c.swept = False
    if c.context == context:
        settle(c)


# --- to and from libnbd -----------------------------------------------------------------------------

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


cdef void watch_socket(Connection *c) noexcept nogil:
    cdef uint32_t events = POLLIN
    if nbd_aio_get_direction(c.handle) & LIBNBD_AIO_DIRECTION_WRITE:
        events |= POLLOUT
    watch(c.context, &c.socket, c.socket.fd, events)


# --- the end of a request ---------------------------------------------------------------------------

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


# --- losing and getting a connection ----------------------------------------------------------------

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


cdef void hand_over(Connection *c, nbd_handle *handle) noexcept nogil:
    """On the connector's thread: a new connection."""
    cdef nbd_handle *old = <nbd_handle *> exchange_ptr(&c.fresh, handle)
    cdef BlockContext *context = c.context
    if old != NULL:
        nbd_close(old)
    if context != NULL and not exchange32(&c.handed, 1):
        post(context, &c.handover)


cdef void take_handover(BlockContext *context, Note *note) noexcept nogil:
    cdef Connection *c = <Connection *> note.owner
    cdef nbd_handle *handle
    exchange32(&c.handed, 0)
    if c.context != context or c.handle != NULL:
        return  # left meanwhile; whoever enters finds it
    handle = <nbd_handle *> exchange_ptr(&c.fresh, NULL)
    if handle != NULL:
        install(c, handle)


cdef void install(Connection *c, nbd_handle *handle) noexcept nogil:
    cdef Queue waiting = take_all(&c.waiting)
    cdef BlockRequest *request
    c.handle = handle
    c.exact = (nbd_get_structured_replies_negotiated(handle) == 0
               and nbd_get_tls_negotiated(handle) == 0)
    watch(c.context, &c.socket, nbd_aio_get_fd(handle), POLLIN)
    request = pop(&waiting)
    while request != NULL:
        send(c, request)
        request = pop(&waiting)
    settle(c)


cdef int nbd_enter(BlockContext *context, BlockState *state) noexcept nogil:
    """The control plane waits meanwhile, so the spare connections are ours to take."""
    cdef Disk *disk = <Disk *> state.own
    cdef Connection *c = &disk.connections[context.index]
    cdef nbd_handle *handle
    if not disk.multi:
        if disk.home == NULL:
            disk.home = c
        c = disk.home
    state.locals[context.index] = c
    if c.context != NULL:
        return 0
    c.disk = disk
    c.socket.ready = socket_ready
    c.clock.ready = clock_ready
    c.socket.owner = c.clock.owner = c
    c.socket.fd = c.clock.fd = -1
    c.handover.take = take_handover
    c.sweep.take = take_sweep
    c.handover.owner = c.sweep.owner = c
    c.urged = c.swept = False
    c.context = context
    handle = <nbd_handle *> exchange_ptr(&c.fresh, NULL)
    if handle == NULL and disk.spare_count:
        disk.spare_count -= 1
        handle = disk.spares[disk.spare_count]
    if handle != NULL:
        install(c, handle)
    else:
        store32(&c.wanted, 1)
        eventfd_write(disk.wanted_fd, 1)
    return 0


cdef bint nbd_leave(BlockContext *context, BlockState *state) noexcept nogil:
    """No command is under way, but perhaps the control plane's flush."""
    cdef Disk *disk = <Disk *> state.own
    cdef Connection *c = <Connection *> state.locals[context.index]
    if c == NULL or c.context != context:
        state.locals[context.index] = NULL
        return True
    unwatch(context, &c.socket)
    set_timer(context, &c.clock, 0)
    if c.socket.polled or c.swept:
        return False
    if c.handle != NULL and c.sent.first == NULL and disk.spare_count < MAX_CONTEXTS:
        disk.spares[disk.spare_count] = c.handle
        disk.spare_count += 1
    elif c.handle != NULL:
        nbd_close(c.handle)
    c.handle = NULL
    memset(&c.sent, 0, sizeof(Queue))
    memset(&c.waiting, 0, sizeof(Queue))
    store32(&c.wanted, 0)
    c.context = NULL
    if disk.home == c:
        disk.home = NULL
    state.locals[context.index] = NULL
    return True


# --- lateness ---------------------------------------------------------------------------------------

cdef void clock_ready(BlockContext *context, Source *source, uint32_t events) noexcept nogil:
    """Some command may be late: fail it, and a connection that owes its answer."""
    cdef Connection *c = <Connection *> source.owner
    cdef uint64_t now = clock_ns()
    cdef Queue waiting
    cdef BlockRequest *request
    if c.handle != NULL and c.sent.first != NULL and (
            late(c, oldest(&c.sent), now) or c.urged and now - c.urged_at >= PATIENCE_NS):
        lose(c)
    waiting = take_all(&c.waiting)
    request = pop(&waiting)
    while request != NULL:
        if late(c, request, now):
            finish(c, request, -ETIMEDOUT)
        else:
            push(&c.waiting, request)
        request = pop(&waiting)
    set_clock(c, now)


cdef inline bint late(Connection *c, BlockRequest *request, uint64_t now) noexcept nogil:
    return c.disk.timeout != 0 and now - request.start >= c.disk.timeout


cdef BlockRequest *oldest(Queue *queue) noexcept nogil:
    cdef BlockRequest *found = queue.first
    cdef BlockRequest *request = queue.first
    while request != NULL:
        if request.start < found.start:
            found = request
        request = request.next
    return found


cdef void set_clock(Connection *c, uint64_t now) noexcept nogil:
    cdef uint64_t due = NEVER
    if c.disk.timeout and c.sent.first != NULL:
        due = min(due, oldest(&c.sent).start + c.disk.timeout)
    if c.disk.timeout and c.waiting.first != NULL:
        due = min(due, oldest(&c.waiting).start + c.disk.timeout)
    if c.urged and c.sent.first != NULL:
        due = min(due, c.urged_at + PATIENCE_NS)
    set_timer(c.context, &c.clock, max(due, now + 1000000) if due != NEVER else 0)


cdef void nbd_urge(BlockContext *context, BlockState *state, bint urgent) noexcept nogil:
    """While an engine waits for its commands, none waits for a connection."""
    cdef Connection *c = <Connection *> state.locals[context.index]
    if c == NULL or c.context != context:
        return
    c.urged = urgent
    if urgent:
        c.urged_at = clock_ns()
        if c.handle == NULL:
            fail_waiting(c)
        set_clock(c, c.urged_at)


# --- the control plane's flush ----------------------------------------------------------------------

cdef bint flush_from_outside(Disk *disk, BlockState *state) noexcept nogil:
    """Start a flush on some IOThread's connection; False: there is none. control_fd tells the end."""
    cdef uint32_t i
    cdef Connection *c
    for i in range(MAX_CONTEXTS):
        c = &disk.connections[i]
        if c.context != NULL:
            memset(&disk.control, 0, sizeof(BlockRequest))
            disk.control.backend = state
            disk.control.op = BLOCK_FLUSH
            disk.control.stage = SYNCING
            disk.control.context = c.context
            disk.control.start = clock_ns()
            disk.control.note.take = take_forwarded
            disk.control.note.owner = c
            post(c.context, &disk.control.note)
            return True
    return False
