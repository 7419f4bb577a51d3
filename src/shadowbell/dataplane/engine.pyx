"""The I/O half of one controller: memory, doorbells, queue pairs, vectors and the client's socket.

The control plane owns an engine and calls all of its methods from one thread. Whatever an IOThread
may be reading is changed while the engine is paused only (pausing.pyx): every IOThread has then let
go of the engine's queues, and none of its commands is under way.
"""

from libc.errno cimport errno
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

import contextlib
import fcntl
import os

from shadowbell.block.backend cimport Backend
from shadowbell.dataplane.access cimport Access
from shadowbell.dataplane.accounts cimport queue_ledger, take_events
from shadowbell.dataplane.adminqueue cimport AdminQueue
from shadowbell.dataplane.binding cimport DOORBELL_BASE, Binding
from shadowbell.dataplane.channel cimport doorbell_written
from shadowbell.dataplane.dma cimport Memory
from shadowbell.dataplane.events cimport signal_fd
from shadowbell.dataplane.includes.cpu cimport load32
from shadowbell.dataplane.layout cimport (
    MAX_QUEUES,
    MAX_VECTORS,
    PAGE_SIZE,
    CompletionQueue,
    Counters,
    EngineState,
)
from shadowbell.dataplane.lines cimport take_pages
from shadowbell.dataplane.live cimport count_live
from shadowbell.dataplane.namespaces cimport Namespaces, free_namespaces
from shadowbell.dataplane.pausing cimport Pausing
from shadowbell.dataplane.pins cimport Pins
from shadowbell.dataplane.queueset cimport QueueSet
from shadowbell.dataplane.stream cimport Stream


cdef extern from "<sys/eventfd.h>":
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK
    int eventfd(unsigned initial, int flags)


cdef class Engine:
    """See the module and, for its methods, engine.pyi."""

    cdef EngineState *state
    cdef Pausing pausing
    cdef Memory memory
    cdef Stream stream
    cdef Access access
    cdef AdminQueue admin
    cdef Binding binding
    cdef QueueSet queues
    cdef Namespaces namespaces
    cdef readonly int notify_fd
    cdef readonly int doorbell_fd

    def __cinit__(self, iothreads, *, int max_queues, bint mapped, placement=None,
                  Pins pins=None):
        self.notify_fd = self.doorbell_fd = -1
        if not 1 <= max_queues < MAX_QUEUES:
            raise ValueError(f"max_queues must be 1 to {MAX_QUEUES - 1}")
        threads = list(iothreads)
        self.queues = QueueSet(threads, placement, max_queues)
        self.pausing = self.queues.pausing = Pausing(threads)
        self.namespaces = Namespaces(threads)
        self.namespaces.pausing = self.pausing
        self.memory = Memory(pins)
        self.state = <EngineState *> calloc(1, sizeof(EngineState))
        if self.state == NULL:
            raise MemoryError
        self.stream = Stream(threads[self.queues.home])
        self.access = Access(self.memory)
        self.admin = AdminQueue(self.access)
        self.binding = self.queues.binding = Binding(self.memory)
        self.stream.state = self.access.state = self.admin.state = self.state
        self.binding.state = self.queues.state = self.state
        self.pausing.state = self.namespaces.state = self.state
        self.state.counters = <Counters *> take_pages(MAX_QUEUES * sizeof(Counters))
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
        if self.state != NULL:
            if self.state.doorbells != NULL:
                munmap(self.state.doorbells, PAGE_SIZE)
                count_live(b"engines", -1)
            free_namespaces(self.state)
            if self.state.counters != NULL:
                munmap(self.state.counters, MAX_QUEUES * sizeof(Counters))
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
        self.namespaces.detach_all()

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
        with self.pausing.paused():
            try:
                self.memory.map(iova, length, fd, offset, prot)
            finally:
                self.binding.rebind()

    def dma_unmap(self, uint64_t iova, uint64_t length):
        with self.pausing.paused():
            try:
                self.memory.unmap(iova, length)
            finally:
                self.binding.rebind()

    def dma_unmap_all(self):
        with self.pausing.paused():
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
        self.queues.open_admin(asq, asq_entries, acq, acq_entries)

    def fetch_admin(self):
        return self.admin.fetch()

    def complete_admin(self, uint16_t cid, uint32_t status, uint32_t dw0=0):
        self.admin.complete(cid, status, dw0)

    def create_cq(self, int qid, uint64_t iova, uint32_t entries, vector):
        self.queues.create_cq(qid, iova, entries, vector)

    def create_sq(self, int qid, uint64_t iova, uint32_t entries, int cqid):
        self.queues.create_sq(qid, iova, entries, cqid)

    def delete_sq(self, int qid):
        self.queues.delete_sq(qid)

    def delete_cq(self, int qid):
        self.queues.delete_cq(qid)

    def move_queue(self, int cqid, int index, *, int patience_ms=10):
        return self.queues.move(cqid, index, patience_ms)

    def queue_loads(self):
        return self.queues.loads()

    def reset(self):
        with self.pausing.paused():
            self.queues.drop_all()
            self.binding.shadow = None
            self.admin.pending.clear()
            memset(self.state.doorbells, 0, PAGE_SIZE)

    # --- doorbells in memory ----------------------------------------------------------------------

    def set_shadow(self, uint64_t shadow, uint64_t eventidx):
        with self.pausing.paused():
            self.binding.set_shadow(shadow, eventidx)

    def region_io_fds(self):
        with self.pausing.paused():
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
        with self.pausing.paused():
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
        self.queues.set_coalescing(entries, microseconds, exempt)

    def set_write_cache(self, bint enabled):
        # From here on each write is stable when it completes; those before become so now.
        with self.pausing.paused():
            if not enabled:
                self.namespaces.flush_all()
            self.state.always_fua = not enabled

    def attach_namespace(self, int nsid, Backend backend not None, uint32_t lba_shift,
                         bint read_only):
        self.namespaces.attach(nsid, backend, lba_shift, read_only)

    def detach_namespace(self, int nsid):
        self.namespaces.detach(nsid)

    def resize_namespace(self, int nsid, uint64_t size):
        self.namespaces.resize(nsid, size)

    def protect_namespace(self, int nsid, bint protected):
        self.namespaces.protect(nsid, protected)

    def limit_namespace(self, int nsid, double iops, double bps, double burst):
        self.namespaces.limit(nsid, iops, bps, burst)

    def flush_all(self):
        self.namespaces.flush_all()

    # --- what happened ----------------------------------------------------------------------------------

    def take_events(self):
        return take_events(self.state, self.memory)

    def ledger(self):
        return [
            queue_ledger(self.state, qid)
            for qid in range(self.state.max_queues + 1)
            if self.state.sqs[qid] != NULL or any(self.state.counters[qid].commands)
        ]

