from shadowbell.dataplane.layout cimport EngineState

cdef class Pausing:
    cdef EngineState *state
    cdef list threads
    cdef int depth
    cdef bint serving(self)
