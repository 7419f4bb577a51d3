from shadowbell.dataplane.layout cimport ThreadState

cdef void run(ThreadState *thread) noexcept nogil
