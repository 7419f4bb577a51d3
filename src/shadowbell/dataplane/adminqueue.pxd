from libc.stdint cimport uint16_t, uint32_t

from shadowbell.dataplane.access cimport Access
from shadowbell.dataplane.layout cimport EngineState

cdef class AdminQueue:
    cdef EngineState *state
    cdef Access access
    cdef object pending        # completions that wait for room in the completion queue
    cdef object fetch(self)
    cdef int complete(self, uint16_t cid, uint32_t status, uint32_t dw0) except -1
    cdef int post_pending(self) except -1
