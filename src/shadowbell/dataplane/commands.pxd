from libc.stdint cimport uint8_t

from shadowbell.block.backend cimport BlockContext, BlockRequest
from shadowbell.dataplane.layout cimport Request, SubmissionQueue, ThreadState

cdef void start_command(ThreadState *thread, SubmissionQueue *sq,
                        const uint8_t *sqe) noexcept nogil
cdef void advance_command(ThreadState *thread, Request *request, int res) noexcept nogil
cdef void complete_command(BlockContext *context, BlockRequest *block, int result) noexcept nogil
cdef bint retry_waiting(ThreadState *thread) noexcept nogil
