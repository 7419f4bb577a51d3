from libc.stdint cimport uint32_t

from shadowbell.block.fixed cimport PinnedMemory
from shadowbell.dataplane.dma cimport Mapping


cdef class Pins:
    cdef list threads
    cdef object jobs           # Mappings whose state may have to change; None: end
    cdef object worker
    cdef set wanted            # Mappings
    cdef dict held             # Mapping: its PinnedMemory, which the IOThreads know
    cdef bytearray slots       # 1: taken
    cdef set told              # reasons that are in the log
    cdef int settle(self, Mapping mapping) except -1
    cdef int pin(self, Mapping mapping) except -1
    cdef int register(self, PinnedMemory pinned) except -1
    cdef int release(self, PinnedMemory pinned) except -1
    cdef int take_slots(self, uint32_t count) except -1
