"""What the control plane asks of an IOThread: to let go of queues and to take them up again."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from shadowbell.block.backend cimport BlockState
from shadowbell.block.fixed cimport enter_range, leave_range
from shadowbell.dataplane.arrivals cimport read_if_ours
from shadowbell.dataplane.commands cimport refuse_command
from shadowbell.dataplane.events cimport signal_fd
from shadowbell.dataplane.handover cimport HANDOVER_KEPT, HANDOVER_WAITS, adopt, release, take_up
from shadowbell.dataplane.interrupts cimport flush_interrupts
from shadowbell.dataplane.kick cimport retire
from shadowbell.dataplane.layout cimport (
    MAX_NAMESPACES,
    MAX_QUEUES,
    OP_ADOPT,
    OP_CHANNEL_CLOSE,
    OP_CHANNEL_OPEN,
    OP_ENTER,
    OP_ENTER_RANGE,
    OP_LEAVE,
    OP_LEAVE_RANGE,
    OP_PAUSE,
    OP_RELEASE,
    OP_RESUME,
    OWNER_NONE,
    SQE_SIZE,
    Channel,
    EngineState,
    SubmissionQueue,
    ThreadState,
)
from shadowbell.dataplane.ring cimport TAG_CHANNEL, cancel, cancel_ioeventfd
from shadowbell.dataplane.throttle cimport held_of, let_go, pop_any


cdef bint operate(ThreadState *thread) noexcept nogil:
    """Do the posted operation, or as much of it as can be done now."""
    cdef EngineState *engine = thread.mailbox.engine
    cdef int kind = thread.mailbox.kind
    cdef int released
    if kind == OP_PAUSE:
        if not pause(thread, engine):
            return False
    elif kind == OP_RESUME:
        resume(thread, engine)
    elif kind == OP_ENTER:
        thread.mailbox.error = enter(thread, thread.mailbox.backend)
    elif kind == OP_LEAVE:
        if not leave(thread, thread.mailbox.backend):
            return False
    elif kind == OP_ENTER_RANGE:
        enter_range(&thread.block, thread.mailbox.memory)
    elif kind == OP_LEAVE_RANGE:
        leave_range(&thread.block, thread.mailbox.memory)
    elif kind == OP_RELEASE:
        released = release(thread, thread.mailbox.cq)
        if released == HANDOVER_WAITS:
            return False
        thread.mailbox.kept = released == HANDOVER_KEPT
    elif kind == OP_ADOPT:
        adopt(thread, thread.mailbox.cq)
    elif kind == OP_CHANNEL_OPEN:
        read_if_ours(thread, engine.channel)
    elif kind == OP_CHANNEL_CLOSE:
        if not close_channel(thread, engine.channel):
            return False
    thread.mailbox.done = thread.mailbox.posted
    signal_fd(thread.done_fd)
    return True


cdef bint pause(ThreadState *thread, EngineState *engine) noexcept nogil:
    """Stop fetching from an engine's queues; True when none of its commands is under way."""
    cdef uint32_t i
    cdef bint drained = True
    if thread.pausing != engine:
        thread.pausing = engine
        i = 0
        while i < thread.active_count:
            if thread.active[i].engine == engine:
                retire(thread, i)
            else:
                i += 1
        let_go(thread, engine, NULL)
        if engine.channel != NULL and engine.channel.thread == thread:
            engine.channel.held = True
        urge(thread, engine, True)
    for i in range(thread.queue_count):
        if thread.queues[i].engine != engine:
            continue
        if thread.queues[i].inflight != held_of(thread.queues[i]):
            drained = False
        if thread.queues[i].ioeventfd_awaited:
            cancel_ioeventfd(thread, thread.queues[i])
            drained = False
    if not drained:
        return False
    flush_interrupts(thread, engine, NULL)
    i = 0
    while i < thread.queue_count:
        if thread.queues[i].engine == engine:
            thread.io_queue_count -= thread.queues[i].qid != 0
            thread.queue_count -= 1
            thread.queues[i] = thread.queues[thread.queue_count]
        else:
            i += 1
    thread.pausing = NULL
    return True


cdef void resume(ThreadState *thread, EngineState *engine) noexcept nogil:
    """Serve the engine's queues as they are now; the control plane has counted them."""
    cdef uint32_t i
    cdef SubmissionQueue *sq
    urge(thread, engine, False)
    fail_held(thread, engine)
    for i in range(MAX_QUEUES):
        sq = engine.sqs[i]
        if sq != NULL and sq.thread == thread:
            sq.rung = 0
            take_up(thread, sq)
    if engine.channel != NULL and engine.channel.thread == thread:
        engine.channel.held = False
        read_if_ours(thread, engine.channel)


cdef void urge(ThreadState *thread, EngineState *engine, bint urgent) noexcept nogil:
    """Have the engine's back ends end what they can't end soon, or no longer have them do so."""
    cdef BlockState *backend
    cdef uint32_t i
    for i in range(MAX_NAMESPACES):
        if engine.namespaces[i] != NULL:
            backend = engine.namespaces[i].backend
            if backend.urge != NULL:
                backend.urge(&thread.block, backend, urgent)


cdef int enter(ThreadState *thread, BlockState *backend) noexcept nogil:
    """Make the back end's state on this thread; 0 or -errno."""
    if backend.locals[thread.block.index] != NULL:
        return 0
    return backend.enter(&thread.block, backend)


cdef bint leave(ThreadState *thread, BlockState *backend) noexcept nogil:
    """True when the thread no longer knows the back end."""
    return (backend.locals[thread.block.index] == NULL
            or backend.leave(&thread.block, backend))


cdef void fail_held(ThreadState *thread, EngineState *engine) noexcept nogil:
    """End what was held of namespaces that are gone, before another may take their place."""
    cdef uint8_t sqe[SQE_SIZE]
    cdef uint64_t arrived
    cdef uint32_t i, index
    for i in range(1, MAX_QUEUES):
        if engine.sqs[i] == NULL or engine.sqs[i].thread != thread or not held_of(engine.sqs[i]):
            continue
        for index in range(MAX_NAMESPACES):
            while (engine.namespaces[index] == NULL
                   and pop_any(engine.sqs[i].held, index, sqe, &arrived)):
                refuse_command(thread, engine.sqs[i], sqe, arrived)


cdef bint close_channel(ThreadState *thread, Channel *channel) noexcept nogil:
    """True when the ring no longer knows the channel."""
    channel.owner = OWNER_NONE
    if not channel.polled:
        return True
    if not channel.ready:
        channel.ready = True  # cancel once
        cancel(thread, <uint64_t> channel | TAG_CHANNEL)
    return False
