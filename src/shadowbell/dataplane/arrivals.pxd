from shadowbell.dataplane.layout cimport Channel, ThreadState

cdef void reap(ThreadState *thread) noexcept nogil
cdef void read_if_ours(ThreadState *thread, Channel *channel) noexcept nogil
