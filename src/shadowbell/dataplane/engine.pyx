"""The I/O half of one controller: memory, doorbells, queue pairs, vectors and the client's socket.

The control plane owns an engine and calls all of its methods from one thread. Whatever an IOThread
may be reading is changed under ``paused()`` only: every IOThread has then let go of the engine's
queues, and none of its commands is under way.
"""

from libc.errno cimport errno
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

import contextlib
import fcntl
import itertools
import os

from shadowbell.block.backend cimport Backend
from shadowbell.dataplane.access cimport Access
from shadowbell.dataplane.accounts cimport queue_ledger, take_events, work_done
from shadowbell.dataplane.adminqueue cimport AdminQueue
from shadowbell.dataplane.binding cimport DOORBELL_BASE, Binding
from shadowbell.dataplane.channel cimport doorbell_written
from shadowbell.dataplane.dma cimport Memory
from shadowbell.dataplane.events cimport signal_fd
from shadowbell.dataplane.includes.cpu cimport load32, ticks
from shadowbell.dataplane.iothread cimport IOThread, ticks_a_second
from shadowbell.dataplane.layout cimport (
    MAX_NAMESPACES,
    MAX_QUEUES,
    MAX_VECTORS,
    OP_ADOPT,
    OP_ENTER,
    OP_LEAVE,
    OP_PAUSE,
    OP_RELEASE,
    OP_RESUME,
    OWNER_THREAD,
    PAGE_SIZE,
    CompletionQueue,
    Counters,
    EngineState,
    NamespaceEntry,
    Throttle,
)
from shadowbell.dataplane.live cimport count_live
from shadowbell.dataplane.pacing cimport in_ticks
from shadowbell.dataplane.pins cimport Pins
from shadowbell.dataplane.stream cimport Stream
from shadowbell.dataplane.throttle cimport BYTE_SHIFT


cdef extern from "<sys/eventfd.h>":
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK
    int eventfd(unsigned initial, int flags)

# Engines take the IOThreads in turn, so that many controllers spread over few threads.
_turn = itertools.count()


cdef void free_namespace(NamespaceEntry *entry) noexcept nogil:
    if entry != NULL:
        free(entry.throttle)
        free(entry)


cdef class Engine:
    """See the module and, for its methods, engine.pyi."""

    cdef EngineState *state
    cdef Memory memory
    cdef list threads
    cdef dict placement             # cqid: the IOThread it begins on; None: the IOThreads in turn
    cdef int home                   # index of the thread that reads the client's socket
    cdef int pauses
    cdef dict backends              # nsid: Backend
    cdef tuple coalescing           # of set_coalescing()
    cdef Stream stream
    cdef Access access
    cdef AdminQueue admin
    cdef Binding binding
    cdef readonly int notify_fd
    cdef readonly int doorbell_fd

    def __cinit__(self, iothreads, *, int max_queues, bint mapped, placement=None,
                  Pins pins=None):
        self.notify_fd = self.doorbell_fd = -1
        if not 1 <= max_queues < MAX_QUEUES:
            raise ValueError(f"max_queues must be 1 to {MAX_QUEUES - 1}")
        self.threads = list(iothreads)
        if placement is None:
            self.home = next(_turn) % len(self.threads)
        else:
            self.placement = {cqid: self.find_thread(placement[cqid - 1])
                              for cqid in range(1, max_queues + 1)}
            self.home = self.threads.index(self.placement[1])
        self.backends = {}
        self.coalescing = (1, 0, ())
        self.memory = Memory(pins)
        self.state = <EngineState *> calloc(1, sizeof(EngineState))
        if self.state == NULL:
            raise MemoryError
        self.stream = Stream(self.threads[self.home])
        self.access = Access(self.memory)
        self.admin = AdminQueue(self.access)
        self.binding = Binding(self.memory)
        self.stream.state = self.access.state = self.admin.state = self.binding.state = self.state
        self.state.counters = <Counters *> calloc(MAX_QUEUES, sizeof(Counters))
        self.notify_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.doorbell_fd = os.memfd_create(
            "shadowbell-doorbells", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.doorbell_fd, DOORBELL_BASE + PAGE_SIZE)
        # The client gets this descriptor: it must not take the page from under us.
        fcntl.fcntl(self.doorbell_fd, fcntl.F_ADD_SEALS,
                    fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        cdef void *page = mmap(
            NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, self.doorbell_fd,
            DOORBELL_BASE)
        if self.state.counters == NULL or self.notify_fd < 0 or page == MAP_FAILED:
            raise OSError(errno, "can't set up an engine")
        self.state.doorbells = <uint32_t *> page
        self.state.table = self.memory.table
        self.state.max_queues = max_queues
        self.state.mapped = mapped
        self.state.notify_fd = self.notify_fd
        for i in range(MAX_VECTORS):
            self.state.vectors[i] = -1
        count_live(b"engines", 1)

    def __dealloc__(self):
        cdef int i
        if self.state != NULL:
            if self.state.doorbells != NULL:
                munmap(self.state.doorbells, PAGE_SIZE)
                count_live(b"engines", -1)
            for i in range(MAX_NAMESPACES):
                free_namespace(self.state.namespaces[i])
            free(self.state.counters)
            free(self.state)
        for fd in (self.notify_fd, self.doorbell_fd):
            if fd >= 0:
                os.close(fd)

    def close(self):
        """Give back everything but the object; the IOThreads no longer know it afterwards."""
        self.close_channel()
        self.reset()
        self.dma_unmap_all()
        for vector in range(MAX_VECTORS):
            self.set_vector(vector, None)
        for nsid in list(self.backends):
            self.detach_namespace(nsid)

    # --- letting go of the IOThreads ----------------------------------------------------------

    @contextlib.contextmanager
    def paused(self):
        """Inside, no IOThread touches the engine's queues and no command is under way."""
        cdef IOThread thread
        threads = self.threads if self.serving() else []
        self.pauses += 1
        try:
            if self.pauses == 1:
                for thread in threads:
                    thread.post(OP_PAUSE, self.state)
            yield
        finally:
            self.pauses -= 1
            if self.pauses == 0 and (threads or self.serving()):
                for thread in self.threads:
                    thread.post(OP_RESUME, self.state)

    cdef bint serving(self):
        cdef uint32_t i
        for i in range(self.state.max_queues + 1):
            if self.state.sqs[i] != NULL and self.state.sqs[i].thread != NULL:
                return True
        return self.state.channel != NULL and self.state.channel.owner == OWNER_THREAD

    # --- the client's socket --------------------------------------------------------------------

    def clear_notify(self):
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.notify_fd)

    def open_channel(self, int fd):
        self.stream.open(fd)

    def next_message(self):
        return self.stream.next_message()

    def resume_channel(self):
        self.stream.resume()

    def close_channel(self):
        self.stream.close()

    def doorbell_write(self, uint64_t offset, data):
        if DOORBELL_BASE <= offset < DOORBELL_BASE + PAGE_SIZE and not offset & 3:
            for i in range(0, len(data) - len(data) % 4, 4):
                if offset + i < DOORBELL_BASE + PAGE_SIZE:
                    doorbell_written(NULL, self.state, offset + i - DOORBELL_BASE,
                                     int.from_bytes(data[i : i + 4], "little"))

    # --- memory -----------------------------------------------------------------------------------

    def dma_map(self, uint64_t iova, uint64_t length, fd, uint64_t offset, uint32_t prot):
        with self.paused():
            try:
                self.memory.map(iova, length, fd, offset, prot)
            finally:
                self.binding.rebind()

    def dma_unmap(self, uint64_t iova, uint64_t length):
        with self.paused():
            try:
                self.memory.unmap(iova, length)
            finally:
                self.binding.rebind()

    def dma_unmap_all(self):
        with self.paused():
            self.memory.clear()
            self.binding.rebind()

    @property
    def pinned_bytes(self):
        return self.memory.pinned_bytes()

    def dma_read(self, uint64_t iova, uint64_t length):
        return self.access.read(iova, length)

    def dma_write(self, uint64_t iova, data):
        self.access.write(iova, data)

    def write_data(self, sqe, data):
        self.access.write_data(sqe, data)

    def read_data(self, sqe, uint64_t length):
        return self.access.read_data(sqe, length)

    # --- queues -----------------------------------------------------------------------------------

    def open_admin(self, uint64_t asq, uint32_t asq_entries, uint64_t acq, uint32_t acq_entries):
        cdef IOThread thread = self.threads[self.home]
        cdef CompletionQueue *cq
        with self.paused():
            cq = self.binding.new_cq(0, acq, acq_entries, 0)
            self.binding.new_sq(0, asq, asq_entries, cq)
            if self.state.mapped:
                self.state.sqs[0].thread = &thread.state
            self.state.admin_seen_tail = 0
            self.binding.rebind()

    def fetch_admin(self):
        return self.admin.fetch()

    def complete_admin(self, uint16_t cid, uint32_t status, uint32_t dw0=0):
        self.admin.complete(cid, status, dw0)

    def create_cq(self, int qid, uint64_t iova, uint32_t entries, vector):
        cdef IOThread thread
        with self.paused():
            self.binding.new_cq(qid, iova, entries, -1 if vector is None else vector)
            thread = (self.threads[(self.home + qid - 1) % len(self.threads)]
                      if self.placement is None else self.placement[qid])
            self.state.cqs[qid].thread = &thread.state
            self.coalesce(self.state.cqs[qid])
            self.binding.rebind()

    def create_sq(self, int qid, uint64_t iova, uint32_t entries, int cqid):
        if (cqid, True) not in self.binding.places:
            raise ValueError(f"no completion queue {cqid}")
        with self.paused():
            self.binding.new_sq(qid, iova, entries, self.state.cqs[cqid])
            self.state.sqs[qid].thread = self.state.cqs[cqid].thread
            self.binding.rebind()

    def delete_sq(self, int qid):
        if (qid, False) not in self.binding.places:
            raise ValueError(f"no submission queue {qid}")
        with self.paused():
            # Nobody waits for what it held back, but its completion queue goes on.
            self.state.sqs[qid].cq.reserved -= self.state.sqs[qid].held.count
            self.binding.drop_sq(qid)

    def delete_cq(self, int qid):
        cdef uint32_t i
        if (qid, True) not in self.binding.places:
            raise ValueError(f"no completion queue {qid}")
        for i in range(self.state.max_queues + 1):
            if self.state.sqs[i] != NULL and self.state.sqs[i].cq == self.state.cqs[qid]:
                raise ValueError(f"submission queue {i} uses completion queue {qid}")
        with self.paused():
            self.binding.drop_cq(qid)

    def move_queue(self, int cqid, int index, *, int patience_ms=10):
        cdef IOThread thread = self.find_thread(index)
        cdef IOThread old
        cdef CompletionQueue *cq
        if cqid == 0 or (cqid, True) not in self.binding.places:
            raise ValueError(f"no completion queue {cqid} for I/O")
        cq = self.state.cqs[cqid]
        old = self.find_thread(cq.thread.block.index)
        if old is thread:
            return True
        if not old.post(OP_RELEASE, self.state, NULL, cq, patience_ms):
            return False
        thread.post(OP_ADOPT, self.state, NULL, cq)
        return True

    cdef IOThread find_thread(self, int index):
        cdef IOThread thread
        for thread in self.threads:
            if thread.index == index:
                return thread
        raise ValueError(f"no IOThread {index}")

    def queue_loads(self):
        return [(cqid, self.state.cqs[cqid].thread.block.index, work_done(self.state, cqid))
                for cqid in range(1, self.state.max_queues + 1) if self.state.cqs[cqid] != NULL]

    def reset(self):
        with self.paused():
            for qid in range(self.state.max_queues + 1):
                self.binding.drop_sq(qid)
                self.binding.drop_cq(qid)
            self.binding.shadow = None
            self.admin.pending.clear()
            memset(self.state.doorbells, 0, PAGE_SIZE)

    # --- doorbells in memory ----------------------------------------------------------------------

    def set_shadow(self, uint64_t shadow, uint64_t eventidx):
        with self.paused():
            self.binding.set_shadow(shadow, eventidx)

    def region_io_fds(self):
        with self.paused():
            return self.binding.offer_ioeventfds()

    # --- vectors and namespaces -----------------------------------------------------------------------

    def set_vector(self, int vector, fd):
        cdef CompletionQueue *cq
        cdef int old, new = -1 if fd is None else fd
        if not 0 <= vector < MAX_VECTORS:
            raise ValueError(f"no vector {vector}")
        if self.state.vectors[vector] == new == -1:
            return
        if new >= 0:
            # A client that fills its eventfd must not hold up the IOThread that writes it.
            os.set_blocking(new, False)
        with self.paused():
            old = self.state.vectors[vector]
            self.state.vectors[vector] = new
            for qid in range(self.state.max_queues + 1):
                cq = self.state.cqs[qid]
                if cq != NULL and cq.vector == vector and cq.tail != load32(cq.head_doorbell):
                    self.signal_vector(vector)
                    break
        if old >= 0:
            os.close(old)

    def signal_vector(self, int vector):
        if 0 <= vector < MAX_VECTORS and self.state.vectors[vector] >= 0:
            signal_fd(self.state.vectors[vector])

    def set_coalescing(self, uint32_t entries, uint32_t microseconds, exempt):
        cdef uint32_t qid
        with self.paused():
            self.coalescing = (entries, microseconds, exempt)
            for qid in range(1, self.state.max_queues + 1):
                if self.state.cqs[qid] != NULL:
                    self.coalesce(self.state.cqs[qid])

    cdef void coalesce(self, CompletionQueue *cq):
        entries, microseconds, exempt = self.coalescing
        cq.threshold = 1 if cq.vector in exempt else entries
        cq.delay = in_ticks(&cq.thread.pace, <uint64_t> microseconds * 1000)

    def set_write_cache(self, bint enabled):
        # From here on each write is stable when it completes; those before become so now.
        with self.paused():
            if not enabled:
                self.flush_all()
            self.state.always_fua = not enabled

    def attach_namespace(self, int nsid, Backend backend not None, uint32_t lba_shift,
                         bint read_only):
        cdef NamespaceEntry *entry
        if not 1 <= nsid <= MAX_NAMESPACES or nsid in self.backends:
            raise ValueError(f"namespace {nsid} can't be attached")
        entry = <NamespaceEntry *> calloc(1, sizeof(NamespaceEntry))
        if entry == NULL:
            raise MemoryError
        entry.backend = &backend.state
        entry.lba_shift = lba_shift
        entry.blocks = backend.state.size >> lba_shift
        entry.read_only = read_only
        try:
            self.enter(backend)
        except BaseException:
            free(entry)
            raise
        with self.paused():
            self.state.namespaces[nsid - 1] = entry
        self.backends[nsid] = backend

    def detach_namespace(self, int nsid):
        if nsid not in self.backends:
            raise ValueError(f"namespace {nsid} isn't attached")
        with self.paused():
            free_namespace(self.state.namespaces[nsid - 1])
            self.state.namespaces[nsid - 1] = NULL
        self.leave(self.backends.pop(nsid))

    cdef int enter(self, Backend backend) except -1:
        """Make the back end's state in the IOThreads, unless another namespace has."""
        cdef IOThread thread
        backend.attached += 1
        if backend.state.enter == NULL or backend.attached > 1:
            return 0
        for thread in self.threads:
            thread.post(OP_ENTER, self.state, &backend.state)
            if thread.state.mailbox.error:
                error = -thread.state.mailbox.error
                self.leave(backend)
                raise OSError(error, os.strerror(error))
        return 0

    cdef int leave(self, Backend backend) except -1:
        cdef IOThread thread
        backend.attached -= 1
        if backend.state.leave != NULL and backend.attached == 0:
            for thread in self.threads:
                thread.post(OP_LEAVE, self.state, &backend.state)
        return 0

    def resize_namespace(self, int nsid, uint64_t size):
        cdef NamespaceEntry *entry
        if nsid not in self.backends:
            raise ValueError(f"namespace {nsid} isn't attached")
        entry = self.state.namespaces[nsid - 1]
        with self.paused():
            self.backends[nsid].resize(size)
            entry.blocks = size >> entry.lba_shift

    def protect_namespace(self, int nsid, bint protected):
        if nsid not in self.backends:
            raise ValueError(f"namespace {nsid} isn't attached")
        with self.paused():
            if protected:
                self.backends[nsid].flush()
            self.state.namespaces[nsid - 1].read_only = protected

    def limit_namespace(self, int nsid, double iops, double bps, double burst):
        cdef NamespaceEntry *entry
        cdef Throttle *throttle = NULL
        cdef uint32_t i
        if nsid not in self.backends:
            raise ValueError(f"namespace {nsid} isn't attached")
        entry = self.state.namespaces[nsid - 1]
        second = ticks_a_second()
        with self.paused():
            if iops or bps:
                throttle = entry.throttle
                if throttle == NULL:
                    throttle = <Throttle *> calloc(1, sizeof(Throttle))
                if throttle == NULL:
                    raise MemoryError
                throttle.command_cost = max(round(second / iops), 1) if iops else 0
                throttle.byte_cost = max(round(second / bps * 2**BYTE_SHIFT), 1) if bps else 0
                throttle.burst = round(second * burst)
                throttle.next_command = throttle.next_byte = ticks()
            else:
                free(entry.throttle)
            entry.throttle = throttle
            # Times that were taken under other limits no longer hold.
            for i in range(1, self.state.max_queues + 1):
                if self.state.sqs[i] != NULL:
                    self.state.sqs[i].held.flows[nsid - 1].due = 0

    def flush_all(self):
        with self.paused():
            for backend in self.backends.values():
                backend.flush()

    # --- what happened ----------------------------------------------------------------------------------

    def take_events(self):
        return take_events(self.state, self.memory)

    def ledger(self):
        return [
            queue_ledger(self.state, qid)
            for qid in range(self.state.max_queues + 1)
            if self.state.sqs[qid] != NULL or any(self.state.counters[qid].commands)
        ]

