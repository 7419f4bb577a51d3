from shadowbell.dataplane.includes.uring cimport io_uring
from shadowbell.dataplane.layout cimport Channel, ThreadState

cdef unsigned reap(ThreadState *thread, io_uring *ring) noexcept nogil
cdef void read_if_ours(ThreadState *thread, Channel *channel) noexcept nogil
