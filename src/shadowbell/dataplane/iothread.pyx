"""An IOThread as the control plane sees it: it is made, started, given operations, and stopped.

What it does meanwhile is in loop.pyx.
"""

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.mman cimport munmap
from posix.unistd cimport close, read

import contextlib
import os
import threading
import time

from shadowbell.block.backend cimport (
    BOUNCE_COUNT,
    BOUNCE_SIZE,
    MAX_CONTEXTS,
    BlockContext,
    BlockState,
    FixedRange,
)
from shadowbell.block.rings cimport RING_IOPOLL, RING_SQPOLL, close_rings, open_rings
from shadowbell.dataplane.commands cimport complete_command
from shadowbell.dataplane.includes.cpu cimport clock_ns, load64, store32, store64, ticks
from shadowbell.dataplane.includes.slices cimport ask_slice
from shadowbell.dataplane.kick cimport kick
from shadowbell.dataplane.layout cimport (
    MAX_REQUESTS,
    MAX_SERVED,
    NEVER,
    OP_STOP,
    PAGE_SIZE,
    CompletionQueue,
    EngineState,
    Request,
    SubmissionQueue,
    ThreadState,
)
from shadowbell.dataplane.lines cimport take_pages
from shadowbell.dataplane.live cimport count_live
from shadowbell.dataplane.loop cimport run
from shadowbell.dataplane.pacing cimport begin_pace, in_ticks

from shadowbell.errors import UserError


cdef extern from "<sys/eventfd.h>":
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK
    int eventfd(unsigned initial, int flags)

cdef extern from "<poll.h>" nogil:
    enum:
        POLLIN
    struct pollfd:
        int fd
        short events
    int poll(pollfd *fds, unsigned long count, int milliseconds)

cdef extern from "<sys/prctl.h>":
    enum:
        PR_SET_TIMERSLACK
    int prctl(int option, unsigned long value)


# What the kernel says of a thread; where it doesn't, nobody ever waits for a processor.
STATISTICS = "/proc/thread-self/schedstat"


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


cdef double ticks_a_second():
    return 1e9 * 2**20 / ns_factor


cdef class IOThread:
    """A thread that serves queue pairs of any number of engines.

    ``poll_max_us``: the longest time in microseconds to poll for work before sleeping (as a rule a
    quarter of it: pacing.pxd); 0 never polls, "busy" polls for as long as there is an I/O queue.
    ``cpu``: the processor to run on, or None. ``sqpoll``: a kernel thread submits to files.
    ``iopoll``: completions of files opened for it are fetched from their devices. ``start()`` raises
    ``UserError`` where io_uring isn't available.
    """

    def __cinit__(self, int index, *, poll_max_us=1024, cpu=None, sqpoll=False, iopoll=False):
        cdef uint32_t i
        cdef ThreadState *state = &self.state
        if not 0 <= index < MAX_CONTEXTS:
            raise ValueError(f"an IOThread's index is 0 to {MAX_CONTEXTS - 1}")
        self.index = index
        self.cpu = cpu
        self.rings = (RING_SQPOLL if sqpoll else 0) | (RING_IOPOLL if iopoll else 0)
        self.lock = threading.Lock()
        memset(state, 0, sizeof(ThreadState))
        state.kick_fd = eventfd(0, EFD_CLOEXEC)
        state.done_fd = eventfd(0, EFD_CLOEXEC)
        if state.kick_fd < 0 or state.done_fd < 0:
            raise OSError(errno, "can't make an eventfd")
        begin_pace(&state.pace, 0 if poll_max_us == "busy" else <uint64_t> (poll_max_us * 1000),
                   ns_factor, tick_factor)
        state.pace.always = poll_max_us == "busy"
        state.busy_alarm = NEVER
        state.alarm_fd = state.statistics = -1
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
        state.block.index = index
        state.block.complete = complete_command
        state.block.wake = wake
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
        cdef int error = open_rings(&state.block, self.rings)
        if error:
            self.failure = UserError(
                f"can't set up io_uring ({os.strerror(-error)}); shadowbell needs Linux 5.15 or "
                "newer with io_uring allowed (sysctl kernel.io_uring_disabled, container seccomp)"
            )
            self.started.set()
            return
        with contextlib.suppress(OSError):
            state.statistics = os.open(STATISTICS, os.O_RDONLY | os.O_CLOEXEC)
        prctl(PR_SET_TIMERSLACK, 1)  # naps are shorter than the usual slack of 50 us
        # A thread that wakes takes the processor from a busy one only if its slice is the shorter
        # one. The least there is; where it can't be had the thread waits for its turn.
        ask_slice(100000)
        self.started.set()
        with nogil:
            run(state)
        close_rings(&state.block)
        if state.statistics >= 0:
            close(state.statistics)
            state.statistics = -1

    @property
    def busy_ns(self):
        busy = load64(&self.state.busy)  # Python's: the product has more than 64 bits after hours
        return busy * self.state.pace.ns_factor >> 20

    @property
    def fixed_transfers(self):
        return load64(&self.state.block.fixed.transfers)

    def set_alarm(self, int fd, uint64_t busy_ns):
        # The old value may go off meanwhile, the new one only through the new descriptor.
        store64(&self.state.busy_alarm, NEVER)
        self.state.alarm_fd = fd
        store64(&self.state.busy_alarm,
                load64(&self.state.busy) + in_ticks(&self.state.pace, busy_ns))

    cdef bint post(self, int kind, EngineState *engine, BlockState *backend=NULL,
                   CompletionQueue *cq=NULL, int patience_ms=-1,
                   FixedRange *memory=NULL) except -1:
        """Have the thread do one operation and wait until it is done.

        False: it was abandoned after so many milliseconds, and nothing has changed.
        """
        cdef ThreadState *state = &self.state
        cdef uint64_t value
        cdef pollfd done
        with self.lock:
            if self.thread is None:
                raise RuntimeError("the IOThread isn't running")
            state.mailbox.kind = kind
            state.mailbox.engine = engine
            state.mailbox.backend = backend
            state.mailbox.cq = cq
            state.mailbox.memory = memory
            state.mailbox.abandoned = 0
            state.mailbox.kept = False
            store32(&state.mailbox.posted, state.mailbox.done + 1)
            kick(state)
            done.fd = state.done_fd
            done.events = POLLIN
            with nogil:
                if patience_ms >= 0 and poll(&done, 1, patience_ms) == 0:
                    store32(&state.mailbox.abandoned, 1)
                    kick(state)
                while read(state.done_fd, &value, sizeof(value)) < 0:
                    pass  # a signal: the operation is still to come
            return not state.mailbox.kept


cdef void wake(BlockContext *context) noexcept nogil:
    """Have the thread look at its notes, from any thread."""
    kick(<ThreadState *> context)


cdef void *take(size_t size) except NULL:
    cdef void *memory = take_pages(size)
    if memory == NULL:
        raise MemoryError
    return memory
