from shadowbell.dataplane.layout cimport CompletionQueue, SubmissionQueue, ThreadState

cdef enum Handover:
    HANDOVER_DONE
    HANDOVER_WAITS             # commands are under way
    HANDOVER_KEPT              # they took too long: everything is as it was

cdef int release(ThreadState *thread, CompletionQueue *cq) noexcept nogil
cdef void adopt(ThreadState *thread, CompletionQueue *cq) noexcept nogil
cdef void take_up(ThreadState *thread, SubmissionQueue *sq) noexcept nogil
