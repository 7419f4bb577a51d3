"""A controller's namespaces: their back ends' coming and going, sizes, protection and limits."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

import os

from shadowbell.block.backend cimport Backend
from shadowbell.dataplane.includes.cpu cimport ticks
from shadowbell.dataplane.iothread cimport IOThread, ticks_a_second
from shadowbell.dataplane.layout cimport (
    MAX_NAMESPACES,
    OP_ENTER,
    OP_LEAVE,
    EngineState,
    NamespaceEntry,
    Throttle,
)
from shadowbell.dataplane.pausing cimport Pausing
from shadowbell.dataplane.throttle cimport BYTE_SHIFT


cdef void free_entry(NamespaceEntry *entry) noexcept nogil:
    if entry != NULL:
        free(entry.throttle)
        free(entry)


cdef void free_namespaces(EngineState *state) noexcept nogil:
    """For an engine that goes without having been closed."""
    cdef int i
    for i in range(MAX_NAMESPACES):
        free_entry(state.namespaces[i])


cdef class Namespaces:
    """See engine.pyi for the methods."""

    def __cinit__(self, list threads not None):
        self.threads = threads
        self.backends = {}

    cdef int attach(self, int nsid, Backend backend, uint32_t lba_shift, bint read_only) except -1:
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
        with self.pausing.paused():
            self.state.namespaces[nsid - 1] = entry
        self.backends[nsid] = backend
        return 0

    cdef int detach(self, int nsid) except -1:
        self.must_have(nsid)
        with self.pausing.paused():
            free_entry(self.state.namespaces[nsid - 1])
            self.state.namespaces[nsid - 1] = NULL
        self.leave(self.backends.pop(nsid))
        return 0

    cdef int detach_all(self) except -1:
        for nsid in list(self.backends):
            self.detach(nsid)
        return 0

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

    cdef int must_have(self, int nsid) except -1:
        if nsid not in self.backends:
            raise ValueError(f"namespace {nsid} isn't attached")
        return 0

    cdef int resize(self, int nsid, uint64_t size) except -1:
        cdef NamespaceEntry *entry
        self.must_have(nsid)
        entry = self.state.namespaces[nsid - 1]
        with self.pausing.paused():
            self.backends[nsid].resize(size)
            entry.blocks = size >> entry.lba_shift
        return 0

    cdef int protect(self, int nsid, bint protected) except -1:
        self.must_have(nsid)
        with self.pausing.paused():
            if protected:
                self.backends[nsid].flush()
            self.state.namespaces[nsid - 1].read_only = protected
        return 0

    cdef int limit(self, int nsid, double iops, double bps, double burst) except -1:
        cdef NamespaceEntry *entry
        cdef Throttle *throttle = NULL
        cdef uint32_t i
        self.must_have(nsid)
        entry = self.state.namespaces[nsid - 1]
        second = ticks_a_second()
        with self.pausing.paused():
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
        return 0

    cdef int flush_all(self) except -1:
        with self.pausing.paused():
            for backend in self.backends.values():
                backend.flush()
        return 0
