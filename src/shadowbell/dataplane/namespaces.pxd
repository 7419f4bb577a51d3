from libc.stdint cimport uint32_t, uint64_t

from shadowbell.block.backend cimport Backend
from shadowbell.dataplane.layout cimport EngineState
from shadowbell.dataplane.pausing cimport Pausing

cdef void free_namespaces(EngineState *state) noexcept nogil

cdef class Namespaces:
    cdef EngineState *state
    cdef Pausing pausing
    cdef list threads
    cdef dict backends         # nsid: Backend
    cdef int attach(self, int nsid, Backend backend, uint32_t lba_shift, bint read_only) except -1
    cdef int detach(self, int nsid) except -1
    cdef int detach_all(self) except -1
    cdef int enter(self, Backend backend) except -1
    cdef int leave(self, Backend backend) except -1
    cdef int must_have(self, int nsid) except -1
    cdef int resize(self, int nsid, uint64_t size) except -1
    cdef int protect(self, int nsid, bint protected) except -1
    cdef int limit(self, int nsid, double iops, double bps, double burst) except -1
    cdef int flush_all(self) except -1
