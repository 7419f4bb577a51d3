"""The back end that does nothing: writes vanish, reads leave the host's memory as it was."""

from shadowbell.block.backend cimport (
    BLOCK_DONE,
    Backend,
    BlockContext,
    BlockRequest,
)


cdef class NullBackend(Backend):
    """For measuring all that isn't storage."""

    def __init__(self, size, *, read_only=False):
        self.kind = "null"
        self.read_only = read_only
        self.supports_discard = True
        self.state.size = size
        self.state.submit = null_submit
        self.state.advance = null_advance


cdef int null_submit(BlockContext *context, BlockRequest *request) noexcept nogil:
    request.result = 0
    return BLOCK_DONE


cdef int null_advance(BlockContext *context, BlockRequest *request, int res) noexcept nogil:
    return BLOCK_DONE
