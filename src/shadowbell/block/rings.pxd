from shadowbell.block.backend cimport BlockContext, BlockState
from shadowbell.dataplane.includes.uring cimport (
    IOSQE_FIXED_FILE,
    io_uring,
    io_uring_sq_ready,
    io_uring_sqe,
    io_uring_submit,
)

cdef enum:
    AT_ONCE = 4        # transfers that a disk is given at a time

cdef enum RingOption:
    RING_SQPOLL = 1    # a kernel thread submits
    RING_IOPOLL = 2    # a second ring asks devices for completions

cdef int open_rings(BlockContext *context, int options) noexcept nogil
cdef void close_rings(BlockContext *context) noexcept nogil
cdef bint open_wide_ring(BlockContext *context) noexcept nogil
cdef int enter_file(BlockContext *context, BlockState *backend) noexcept nogil
cdef bint leave_file(BlockContext *context, BlockState *backend) noexcept nogil
cdef int take_file_slot() except? -1
cdef void give_file_slot(int slot)


cdef inline void use_file(BlockContext *context, BlockState *backend,
                          io_uring_sqe *sqe) noexcept nogil:
    """Name the back end's file in an entry: a registered one costs no reference."""
    cdef int slot = backend.file_slot
    if slot >= 0 and context.files[slot]:
        sqe.fd = slot
        sqe.flags |= IOSQE_FIXED_FILE
    else:
        sqe.fd = backend.fd


cdef inline void start_some(io_uring *ring) noexcept nogil:
    """Don't leave a disk idle while a long batch is prepared.

    The kernel keeps what is submitted at a time back from the disk until all of it is ready.
    """
    if io_uring_sq_ready(ring) >= AT_ONCE:
        io_uring_submit(ring)
