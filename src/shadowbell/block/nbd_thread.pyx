"""NBD in an IOThread: commands come in, connections come and go, what is late fails.

A server that allows one connection only is one IOThread's; the others post their requests to it.
"""

from libc.errno cimport EAGAIN, ETIMEDOUT
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from shadowbell.block.backend cimport (
    BLOCK_BUSY,
    BLOCK_DISCARD,
    BLOCK_DONE,
    BLOCK_FLUSH,
    BLOCK_PENDING,
    BLOCK_READ,
    BLOCK_WRITE,
    MAX_CONTEXTS,
    BlockContext,
    BlockRequest,
    BlockState,
    Note,
    Source,
    bounce_take,
)
from shadowbell.block.includes.libnbd cimport (
    nbd_aio_get_fd,
    nbd_close,
    nbd_get_structured_replies_negotiated,
    nbd_get_tls_negotiated,
    nbd_handle,
)
from shadowbell.block.nbd_connection cimport (
    MOVING,
    SYNCING,
    TRIMMING,
    WRITING_ZEROS,
    ZEROING,
    Connection,
    Disk,
    Queue,
    fail_waiting,
    finish,
    lose,
    pop,
    push,
    send,
    settle,
    settle_later,
    socket_ready,
    take_all,
    take_sweep,
    watch_socket,
)
from shadowbell.block.pieces cimport gather
from shadowbell.block.sources cimport post, set_timer, unwatch, watch
from shadowbell.dataplane.includes.cpu cimport clock_ns, exchange32, exchange_ptr, store32
from shadowbell.dataplane.includes.uring cimport POLLIN


cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd_write(int fd, uint64_t value)

cdef enum:
    # How long an engine that pauses waits for a server that doesn't answer.
    PATIENCE_NS = 10000000000

cdef uint64_t NEVER = ~(<uint64_t> 0)


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


cdef inline void after_submit(Connection *c) noexcept nogil:
    """Look after what sending brought, but not from within the sender's call."""
    if c.ended.first != NULL:
        settle_later(c)
    elif c.handle != NULL:
        watch_socket(c)


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
