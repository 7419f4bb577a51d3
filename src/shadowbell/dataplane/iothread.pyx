"""An IOThread: one loop that serves queue pairs, and the one place where they wait.

A round: take an operation of the control plane's, reap the ring, serve the polled queues, submit
once, raise each completion queue's interrupt at most once. When nothing has moved for a while
(pacing.pxd), every queue is armed (doorbells.pxd) and the thread sleeps in its ring, where storage
completions, the clients' sockets and kicks all arrive.
"""

from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.mman cimport (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    mmap,
    munmap,
)
from posix.unistd cimport close, read

import contextlib
import os
import threading
import time

from shadowbell.block.backend cimport BOUNCE_COUNT, BOUNCE_SIZE
from shadowbell.dataplane.channel cimport (
    PARSED_NOTHING,
    receive,
    take_doorbells,
)
from shadowbell.dataplane.commands cimport advance_command, retry_waiting
from shadowbell.dataplane.dma cimport bus_error_count
from shadowbell.dataplane.doorbells cimport arm
from shadowbell.dataplane.events cimport push_event, signal_fd
from shadowbell.dataplane.includes.cpu cimport (
    clock_ns,
    exchange32,
    fence,
    load32,
    relax,
    store32,
    ticks,
)
from shadowbell.dataplane.includes.uring cimport (
    IORING_SETUP_CQSIZE,
    IORING_SETUP_DEFER_TASKRUN,
    IORING_SETUP_SINGLE_ISSUER,
    IORING_SETUP_TASKRUN_FLAG,
    POLLIN,
    POLLRDHUP,
    __kernel_timespec,
    io_uring_cq_advance,
    io_uring_cqe,
    io_uring_get_events,
    io_uring_get_sqe,
    io_uring_params,
    io_uring_peek_batch_cqe,
    io_uring_prep_cancel64,
    io_uring_prep_poll_add,
    io_uring_prep_read,
    io_uring_queue_exit,
    io_uring_queue_init_params,
    io_uring_sq_ready,
    io_uring_sqe,
    io_uring_sqe_set_data64,
    io_uring_submit,
    io_uring_submit_and_wait,
    io_uring_submit_and_wait_timeout,
    uring_pending,
    uring_ready,
)
from shadowbell.dataplane.kick cimport activate, kick
from shadowbell.dataplane.layout cimport (
    EVENT_BUS_ERROR,
    MAX_QUEUES,
    MAX_REQUESTS,
    MAX_SERVED,
    OP_CHANNEL_CLOSE,
    OP_CHANNEL_OPEN,
    OP_PAUSE,
    OP_RESUME,
    OP_STOP,
    OWNER_CONTROL,
    OWNER_NONE,
    OWNER_THREAD,
    PAGE_SIZE,
    Channel,
    CompletionQueue,
    EngineState,
    Request,
    SubmissionQueue,
    ThreadState,
)
from shadowbell.dataplane.live cimport count_live
from shadowbell.dataplane.pacing cimport (
    LONG_SLEEP_NS,
    NAP_GAP_NS,
    idle_span,
    in_ticks,
    learn_gap,
    nap_ns,
    worth_polling,
)
from shadowbell.dataplane.queues cimport completion_room, serve

from shadowbell.errors import UserError


cdef extern from "<sys/eventfd.h>":
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK
    int eventfd(unsigned initial, int flags)

cdef extern from "<sys/prctl.h>":
    enum:
        PR_SET_TIMERSLACK
    int prctl(int option, unsigned long value)

# What a completion's user_data points to is told by its low bits.
cdef enum Tag:
    TAG_REQUEST = 0
    TAG_KICK = 1
    TAG_CHANNEL = 2
    TAG_IGNORE = 3
    TAG_IOEVENTFD = 4
    TAG_MASK = 7

cdef enum:
    RING_ENTRIES = 2048        # requests, sockets and a kick: submission never finds it full
    REAP = 64
    READS = 8                  # of a client's socket in a round
    # A queue that found nothing for so long is armed and no longer polled, though the thread goes on.
    IDLE_QUEUE_NS = 1000000


cdef void read_clocks(uint64_t *ns, uint64_t *counter):
    """Read both clocks at the same moment: of some tries, the one least torn apart."""
    cdef uint64_t before, now, after, best = ~(<uint64_t> 0)
    for _ in range(10):
        before = ticks()
        now = clock_ns()
        after = ticks()
        if after - before < best:
            best = after - before
            ns[0] = now
            counter[0] = before + (after - before) // 2


cdef uint64_t measure_ns_factor():
    """Nanoseconds per tick, times 2**20."""
    cdef uint64_t ns, start, later_ns, later
    read_clocks(&ns, &start)
    time.sleep(0.002)
    read_clocks(&later_ns, &later)
    return ((later_ns - ns) << 20) // max(later - start, <uint64_t> 1)

cdef uint64_t ns_factor = measure_ns_factor()
cdef uint64_t tick_factor = (<uint64_t> 1 << 40) // ns_factor


cdef class IOThread:
    """A thread that serves queue pairs of any number of engines.

    ``poll_max_us``: the longest time in microseconds to poll for work before sleeping; 0 never
    polls. ``cpu``: the processor to run on, or None. ``start()`` raises ``UserError`` where io_uring
    isn't available.
    """

    def __cinit__(self, int index, *, poll_max_us=32, cpu=None):
        cdef uint32_t i
        cdef ThreadState *state = &self.state
        self.index = index
        self.cpu = cpu
        self.lock = threading.Lock()
        memset(state, 0, sizeof(ThreadState))
        state.kick_fd = eventfd(0, EFD_CLOEXEC)
        state.done_fd = eventfd(0, EFD_CLOEXEC)
        if state.kick_fd < 0 or state.done_fd < 0:
            raise OSError(errno, "can't make an eventfd")
        state.ns_factor = ns_factor
        state.tick_factor = tick_factor
        state.poll_max = in_ticks(state, <uint64_t> (poll_max_us * 1000))
        state.gap = in_ticks(state, 2 * NAP_GAP_NS)
        state.waiting_tail = &state.waiting
        state.requests = <Request *> take(MAX_REQUESTS * sizeof(Request))
        state.free_requests = <Request **> calloc(MAX_REQUESTS, sizeof(Request *))
        state.prp_page = <uint8_t *> take(PAGE_SIZE)
        state.block.bounce_area = <uint8_t *> take(BOUNCE_COUNT * BOUNCE_SIZE)
        if state.free_requests == NULL:
            raise MemoryError
        for i in range(MAX_REQUESTS):
            state.free_requests[i] = &state.requests[MAX_REQUESTS - 1 - i]
        state.free_count = MAX_REQUESTS
        for i in range(BOUNCE_COUNT):
            state.block.bounce_free[i] = state.block.bounce_area + i * <size_t> BOUNCE_SIZE
        state.block.bounce_left = BOUNCE_COUNT
        state.queues = <SubmissionQueue **> take(MAX_SERVED * sizeof(SubmissionQueue *))
        state.active = <SubmissionQueue **> take(MAX_SERVED * sizeof(SubmissionQueue *))
        count_live(b"iothreads", 1)

    def __dealloc__(self):
        cdef ThreadState *state = &self.state
        if state.requests != NULL:
            munmap(state.requests, MAX_REQUESTS * sizeof(Request))
        if state.prp_page != NULL:
            munmap(state.prp_page, PAGE_SIZE)
        if state.block.bounce_area != NULL:
            munmap(state.block.bounce_area, BOUNCE_COUNT * <size_t> BOUNCE_SIZE)
        free(state.free_requests)
        if state.queues != NULL:
            munmap(state.queues, MAX_SERVED * sizeof(SubmissionQueue *))
        if state.active != NULL:
            munmap(state.active, MAX_SERVED * sizeof(SubmissionQueue *))
        if state.kick_fd > 0:
            close(state.kick_fd)
        if state.done_fd > 0:
            close(state.done_fd)
        count_live(b"iothreads", -1)

    def start(self):
        self.started = threading.Event()
        self.failure = None
        self.thread = threading.Thread(target=self.main, name=f"iothread-{self.index}", daemon=True)
        self.thread.start()
        self.started.wait()
        if self.failure is not None:
            self.thread.join()
            self.thread = None
            raise self.failure

    def stop(self):
        """End the thread. Its engines must be closed before."""
        if self.thread is not None:
            self.post(OP_STOP, NULL)
            self.thread.join()
            self.thread = None

    def main(self):
        cdef ThreadState *state = &self.state
        if self.cpu is not None:
            with contextlib.suppress(OSError):  # a processor we may not have: run anywhere
                os.sched_setaffinity(0, {self.cpu})
        cdef int error = open_ring(state)
        if error:
            self.failure = UserError(
                f"can't set up io_uring ({os.strerror(-error)}); shadowbell needs Linux 5.15 or "
                "newer with io_uring allowed (sysctl kernel.io_uring_disabled, container seccomp)"
            )
            self.started.set()
            return
        prctl(PR_SET_TIMERSLACK, 1)  # naps are shorter than the usual slack of 50 us
        self.started.set()
        with nogil:
            run(state)
        io_uring_queue_exit(&state.block.ring)

    cdef void post(self, int kind, EngineState *engine) except *:
        """Have the thread do one operation and wait until it is done."""
        cdef ThreadState *state = &self.state
        cdef uint64_t value
        with self.lock:
            if self.thread is None:
                raise RuntimeError("the IOThread isn't running")
            state.mailbox.kind = kind
            state.mailbox.engine = engine
            store32(&state.mailbox.posted, state.mailbox.done + 1)
            kick(state)
            with nogil:
                while read(state.done_fd, &value, sizeof(value)) < 0:
                    pass  # a signal: the operation is still to come


cdef void *take(size_t size) except NULL:
    """Zeroed pages that cost nothing until they are touched."""
    cdef void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if memory == MAP_FAILED:
        raise MemoryError
    return memory


cdef int open_ring(ThreadState *state) noexcept:
    cdef io_uring_params params
    cdef int error = 0
    for flags in (
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
        0,  # before Linux 6.1
    ):
        memset(&params, 0, sizeof(params))
        params.flags = IORING_SETUP_CQSIZE | <uint32_t> flags
        params.cq_entries = 2 * RING_ENTRIES
        error = io_uring_queue_init_params(RING_ENTRIES, &state.block.ring, &params)
        if error == 0:
            break
    return error


# --- the loop ---------------------------------------------------------------------------------------

cdef void run(ThreadState *thread) noexcept nogil:
    cdef uint64_t last_work
    cdef uint64_t shortest_idle = in_ticks(thread, IDLE_QUEUE_NS)
    cdef bint busy
    await_kick(thread)
    thread.now = last_work = ticks()
    while True:
        busy = False
        thread.now = ticks()
        if load32(&thread.mailbox.posted) != thread.mailbox.done:
            if thread.mailbox.kind == OP_STOP:
                thread.mailbox.done = thread.mailbox.posted
                signal_fd(thread.done_fd)
                return
            busy = operate(thread)
        if load32(&thread.kicked):
            take_kicks(thread)
        if uring_pending(&thread.block.ring):
            io_uring_get_events(&thread.block.ring)
        if uring_ready(&thread.block.ring):
            reap(thread)
            busy = True
        if thread.waiting != NULL and retry_waiting(thread):
            busy = True
        if serve_active(thread, max(shortest_idle, idle_span(thread))):
            busy = True
        if io_uring_sq_ready(&thread.block.ring):
            io_uring_submit(&thread.block.ring)
        if thread.interrupts != NULL:
            raise_interrupts(thread)
        if thread.bus_errors_seen != load32(bus_error_count):
            tell_bus_error(thread)
        if busy:
            learn_gap(thread, gap_until(thread, last_work))
            last_work = thread.now
        elif worth_polling(thread, thread.now - last_work):
            relax()
        else:
            rest(thread, last_work)


cdef bint serve_active(ThreadState *thread, uint64_t idle_queue) noexcept nogil:
    cdef SubmissionQueue *sq
    cdef bint busy = False
    cdef uint32_t i = 0
    while i < thread.active_count:
        sq = thread.active[i]
        if serve(thread, sq):
            sq.idle_since = thread.now
            busy = True
        elif thread.now - sq.idle_since > idle_queue and not sq.engine.mapped and settle(sq):
            retire(thread, i)
            continue
        i += 1
    return busy


cdef bint settle(SubmissionQueue *sq) noexcept nogil:
    """See to it that the next thing to do for a queue wakes us; False: there is something now."""
    if sq.dead or not sq.reachable:
        return True  # nothing can be done before the control plane changes it
    if sq.cq.stalled and completion_room(sq.cq) == 0:
        return True  # its completion queue's head is armed
    return arm(sq)


cdef void retire(ThreadState *thread, uint32_t i) noexcept nogil:
    """Take an armed queue from the polled ones."""
    cdef SubmissionQueue *sq = thread.active[i]
    sq.active = False
    thread.mapped_count -= sq.engine.mapped
    thread.active_count -= 1
    thread.active[i] = thread.active[thread.active_count]


cdef void take_kicks(ThreadState *thread) noexcept nogil:
    cdef uint32_t i
    exchange32(&thread.kicked, 0)
    for i in range(thread.queue_count):
        if thread.queues[i].engine == thread.pausing:
            continue  # resuming looks at all of its queues
        if load32(&thread.queues[i].rung) and exchange32(&thread.queues[i].rung, 0):
            activate(thread, thread.queues[i])


cdef void rest(ThreadState *thread, uint64_t last_work) noexcept nogil:
    """Nap, or arm every polled queue and sleep; come back at once when one has work."""
    cdef uint64_t nap = 0
    cdef uint32_t i = 0
    cdef io_uring_cqe *cqe = NULL
    cdef __kernel_timespec timeout
    if thread.active_count:
        nap = nap_ns(thread, thread.now - last_work)
    store32(&thread.sleeping, 1)
    fence()
    while nap == 0 and i < thread.active_count:
        if thread.free_count == 0:
            i += 1  # the end of a command will wake us
        elif settle(thread.active[i]):
            retire(thread, i)
        else:
            store32(&thread.sleeping, 0)
            return
    if load32(&thread.kicked) or load32(&thread.mailbox.posted) != thread.mailbox.done:
        store32(&thread.sleeping, 0)
        return
    thread.rested_at = thread.now
    if nap:
        timeout.tv_sec = 0
        timeout.tv_nsec = nap
        io_uring_submit_and_wait_timeout(&thread.block.ring, &cqe, 1, &timeout, NULL)
    else:
        io_uring_submit_and_wait(&thread.block.ring, 1)
    store32(&thread.sleeping, 0)


cdef uint64_t gap_until(ThreadState *thread, uint64_t last_work) noexcept nogil:
    """The gap that this round's work ended, as pacing.pxd counts it."""
    cdef uint64_t rested = thread.rested_at
    if rested <= last_work:
        return thread.now - last_work  # it was polled through
    if thread.now - rested > in_ticks(thread, LONG_SLEEP_NS):
        return min(thread.now - last_work, in_ticks(thread, 8 * NAP_GAP_NS))
    return rested - last_work


cdef void raise_interrupts(ThreadState *thread) noexcept nogil:
    cdef CompletionQueue *cq = thread.interrupts
    cdef int fd
    while cq != NULL:
        cq.raise_interrupt = False
        fd = cq.engine.vectors[cq.vector]
        if fd >= 0:
            cq.engine.counters[cq.qid].interrupts += 1
            signal_fd(fd)
        cq = cq.next_interrupt
    thread.interrupts = NULL


# --- what arrives in the ring -----------------------------------------------------------------------

cdef void reap(ThreadState *thread) noexcept nogil:
    cdef io_uring_cqe *cqes[REAP]
    cdef unsigned count = io_uring_peek_batch_cqe(&thread.block.ring, cqes, REAP)
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
    io_uring_cq_advance(&thread.block.ring, count)


cdef io_uring_sqe *next_sqe(ThreadState *thread) noexcept nogil:
    """A free ring entry; the ring is larger than all that can be under way."""
    cdef io_uring_sqe *sqe = io_uring_get_sqe(&thread.block.ring)
    while sqe == NULL:
        io_uring_submit(&thread.block.ring)
        sqe = io_uring_get_sqe(&thread.block.ring)
    return sqe


cdef void await_kick(ThreadState *thread) noexcept nogil:
    cdef io_uring_sqe *sqe = next_sqe(thread)
    io_uring_prep_read(sqe, thread.kick_fd, &thread.kick_value, sizeof(uint64_t), 0)
    io_uring_sqe_set_data64(sqe, TAG_KICK)


cdef void await_channel(ThreadState *thread, Channel *channel) noexcept nogil:
    cdef io_uring_sqe *sqe = next_sqe(thread)
    io_uring_prep_poll_add(sqe, channel.fd, POLLIN | POLLRDHUP)
    io_uring_sqe_set_data64(sqe, <uint64_t> channel | TAG_CHANNEL)
    channel.polled = True


cdef void await_ioeventfd(ThreadState *thread, SubmissionQueue *sq) noexcept nogil:
    cdef io_uring_sqe *sqe = next_sqe(thread)
    io_uring_prep_read(sqe, sq.ioeventfd, &sq.ioeventfd_value, sizeof(uint64_t), 0)
    io_uring_sqe_set_data64(sqe, <uint64_t> sq | TAG_IOEVENTFD)
    sq.ioeventfd_awaited = True
    sq.ioeventfd_cancelled = False


cdef void cancel_ioeventfd(ThreadState *thread, SubmissionQueue *sq) noexcept nogil:
    cdef io_uring_sqe *sqe
    if not sq.ioeventfd_cancelled:
        sq.ioeventfd_cancelled = True
        sqe = next_sqe(thread)
        io_uring_prep_cancel64(sqe, <uint64_t> sq | TAG_IOEVENTFD, 0)
        io_uring_sqe_set_data64(sqe, TAG_IGNORE)


cdef void ioeventfd_ready(ThreadState *thread, SubmissionQueue *sq) noexcept nogil:
    """The client wrote a shadowed doorbell's eventfd: the value is in the shadow."""
    sq.ioeventfd_awaited = False
    if sq.engine == thread.pausing:
        return  # cancelled, or resuming looks at the queue anyway
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


cdef void tell_bus_error(ThreadState *thread) noexcept nogil:
    cdef uint32_t i
    thread.bus_errors_seen = load32(bus_error_count)
    for i in range(thread.queue_count):
        if i and thread.queues[i].engine == thread.queues[i - 1].engine:
            continue
        push_event(thread.queues[i].engine, EVENT_BUS_ERROR, thread.queues[i].qid, 0, 0, 0, 0)


# --- the control plane's operations -----------------------------------------------------------------

cdef bint operate(ThreadState *thread) noexcept nogil:
    """Do the posted operation, or as much of it as can be done now."""
    cdef EngineState *engine = thread.mailbox.engine
    cdef int kind = thread.mailbox.kind
    if kind == OP_PAUSE:
        if not pause(thread, engine):
            return False
    elif kind == OP_RESUME:
        resume(thread, engine)
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
        if engine.channel != NULL and engine.channel.thread == thread:
            engine.channel.held = True
    for i in range(thread.queue_count):
        if thread.queues[i].engine != engine:
            continue
        if thread.queues[i].inflight:
            drained = False
        if thread.queues[i].ioeventfd_awaited:
            cancel_ioeventfd(thread, thread.queues[i])
            drained = False
    if not drained:
        return False
    i = 0
    while i < thread.queue_count:
        if thread.queues[i].engine == engine:
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
    for i in range(MAX_QUEUES):
        sq = engine.sqs[i]
        if sq != NULL and sq.thread == thread:
            sq.rung = 0
            sq.active = False
            thread.queues[thread.queue_count] = sq
            thread.queue_count += 1
            activate(thread, sq)
            if sq.ioeventfd >= 0:
                await_ioeventfd(thread, sq)
    if engine.channel != NULL and engine.channel.thread == thread:
        engine.channel.held = False
        read_if_ours(thread, engine.channel)


cdef void read_if_ours(ThreadState *thread, Channel *channel) noexcept nogil:
    if channel != NULL and channel.owner == OWNER_THREAD and not channel.held:
        channel.ready = False
        read_channel(thread, channel)


cdef bint close_channel(ThreadState *thread, Channel *channel) noexcept nogil:
    """True when the ring no longer knows the channel."""
    cdef io_uring_sqe *sqe
    channel.owner = OWNER_NONE
    if not channel.polled:
        return True
    if not channel.ready:
        channel.ready = True  # cancel once
        sqe = next_sqe(thread)
        io_uring_prep_cancel64(sqe, <uint64_t> channel | TAG_CHANNEL, 0)
        io_uring_sqe_set_data64(sqe, TAG_IGNORE)
    return False
