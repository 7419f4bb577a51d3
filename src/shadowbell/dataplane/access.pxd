from libc.stdint cimport uint8_t, uint32_t, uint64_t

from shadowbell.dataplane.dma cimport Memory
from shadowbell.dataplane.layout cimport EngineState

cdef class Access:
    cdef EngineState *state
    cdef Memory memory
    cdef uint32_t bus_errors_seen
    cdef void tell_bus_error(self)
    cdef object read(self, uint64_t iova, uint64_t length)
    cdef int write(self, uint64_t iova, data) except -1
    cdef object read_data(self, sqe, uint64_t length)
    cdef int write_data(self, sqe, data) except -1
    cdef int transfer(self, const uint8_t[::1] sqe, uint8_t *data, uint64_t length,
                      bint to_host) except -1
