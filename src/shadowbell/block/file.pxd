from libc.stdint cimport uint64_t

from shadowbell.block.backend cimport Backend, BlockContext, BlockRequest

cdef void *zeros           # read-only, BOUNCE_SIZE bytes

cdef int file_submit(BlockContext *context, BlockRequest *request) noexcept nogil
cdef void skip(BlockRequest *request, uint64_t count) noexcept nogil
cdef int finish(BlockContext *context, BlockRequest *request, int result) noexcept nogil
cdef void release(BlockContext *context, BlockRequest *request) noexcept nogil


cdef class FileBackend(Backend):
    pass
