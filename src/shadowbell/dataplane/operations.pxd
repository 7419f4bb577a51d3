from shadowbell.dataplane.layout cimport ThreadState

cdef bint operate(ThreadState *thread) noexcept nogil
