from libc.stdint cimport uint8_t, uint64_t

from shadowbell.block.backend cimport BlockContext, BlockRequest
from shadowbell.dataplane.layout cimport Request, SubmissionQueue, ThreadState

cdef void start_command(ThreadState *thread, SubmissionQueue *sq, const uint8_t *sqe,
                        uint64_t since, bint later) noexcept nogil
cdef bint start_held(ThreadState *thread) noexcept nogil
cdef void refuse_command(ThreadState *thread, SubmissionQueue *sq, const uint8_t *sqe,
                         uint64_t since) noexcept nogil
cdef void advance_command(ThreadState *thread, Request *request, int res) noexcept nogil
cdef void complete_command(BlockContext *context, BlockRequest *block, int result) noexcept nogil
cdef bint retry_waiting(ThreadState *thread) noexcept nogil
