from libc.stdint cimport uint32_t

from shadowbell.dataplane.iothread cimport IOThread
from shadowbell.dataplane.layout cimport Channel, EngineState

cdef class Stream:
    cdef EngineState *state
    cdef IOThread thread
    cdef int open(self, int fd) except -1
    cdef object next_message(self)
    cdef tuple take_message(self, Channel *channel, uint32_t size)
    cdef int resume(self) except -1
    cdef int close(self) except -1
