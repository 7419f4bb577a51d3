"""An IOThread's io_urings, and the files registered in them.

The main ring is where the thread sleeps. A ring that polls its devices can neither wait for sockets
nor flush, so ``--iopoll`` opens a second one, for reads and writes only. NVMe commands need entries
of twice the size, which would cost the other requests cache lines: they have a third ring, opened by
the first command. All three belong to their thread alone.
"""

from libc.errno cimport EINVAL, ENOMEM
from libc.stdint cimport uint32_t
from libc.stdlib cimport free
from libc.string cimport memset

from shadowbell.block.backend cimport MAX_FILES, BlockContext, BlockState
from shadowbell.dataplane.includes.uring cimport (
    IORING_SETUP_CQE32,
    IORING_SETUP_CQSIZE,
    IORING_SETUP_DEFER_TASKRUN,
    IORING_SETUP_IOPOLL,
    IORING_SETUP_SINGLE_ISSUER,
    IORING_SETUP_SQE128,
    IORING_SETUP_SQPOLL,
    IORING_SETUP_TASKRUN_FLAG,
    io_uring,
    io_uring_cqe,
    io_uring_get_sqe,
    io_uring_params,
    io_uring_prep_read,
    io_uring_queue_exit,
    io_uring_queue_init_params,
    io_uring_register_files_sparse,
    io_uring_register_files_update,
    io_uring_register_ring_fd,
    io_uring_sqe,
    io_uring_submit,
    io_uring_wait_cqe,
)


cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **memory, size_t alignment, size_t size)

cdef enum:
    RING_ENTRIES = 2048        # requests, sockets and a kick: submission never finds it full
    SQPOLL_IDLE_MS = 100       # the kernel's thread sleeps when nothing came for so long
    PROBE_ALIGNMENT = 4096


cdef int open_rings(BlockContext *context, int options) noexcept nogil:
    """Open the rings; 0 or -errno. From the thread that will use them."""
    cdef int error
    cdef uint32_t flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN
    if options & RING_SQPOLL and not options & RING_IOPOLL:
        error = open_one(&context.ring, IORING_SETUP_SQPOLL)
    else:
        error = open_one(&context.ring, flags | IORING_SETUP_TASKRUN_FLAG)
        if error == -EINVAL:
            error = open_one(&context.ring, 0)  # before Linux 6.1
    if error:
        return error
    io_uring_register_files_sparse(&context.ring, MAX_FILES)  # refused: no file will be registered
    if options & RING_IOPOLL:
        if options & RING_SQPOLL:
            flags = IORING_SETUP_SQPOLL
        error = open_one(&context.polled, IORING_SETUP_IOPOLL | flags)
        if error == -EINVAL:
            error = open_one(&context.polled, IORING_SETUP_IOPOLL)
        if error:
            io_uring_queue_exit(&context.ring)
            return error
        io_uring_register_files_sparse(&context.polled, MAX_FILES)
        context.has_polled = True
    return 0


cdef int open_one(io_uring *ring, uint32_t flags) noexcept nogil:
    cdef io_uring_params params
    cdef int error
    memset(&params, 0, sizeof(params))
    params.flags = IORING_SETUP_CQSIZE | flags
    params.cq_entries = 2 * RING_ENTRIES
    params.sq_thread_idle = SQPOLL_IDLE_MS
    error = io_uring_queue_init_params(RING_ENTRIES, ring, &params)
    if error == 0:
        io_uring_register_ring_fd(ring)  # spares each system call a look at the descriptor table
    return error


cdef bint open_wide_ring(BlockContext *context) noexcept nogil:
    if not context.has_wide:
        context.has_wide = open_one(&context.wide, IORING_SETUP_SQE128 | IORING_SETUP_CQE32) == 0
    return context.has_wide


cdef void close_rings(BlockContext *context) noexcept nogil:
    io_uring_queue_exit(&context.ring)
    if context.has_polled:
        io_uring_queue_exit(&context.polled)
    if context.has_wide:
        io_uring_queue_exit(&context.wide)
    context.has_polled = context.has_wide = False
    memset(context.files, False, MAX_FILES)


# --- registered files -------------------------------------------------------------------------------
# Every file has one slot in the process, the same in all rings. They must forget it when its last
# namespace is detached: a registered file stays open, and locked, whatever becomes of its descriptor.

cdef list free_slots = list(range(MAX_FILES))


cdef int take_file_slot() except? -1:
    """A slot for a file; -1 when they are used up, and the file goes by its descriptor."""
    return free_slots.pop() if free_slots else -1


cdef void give_file_slot(int slot):
    if slot >= 0:
        free_slots.append(slot)


cdef int enter_file(BlockContext *context, BlockState *backend) noexcept nogil:
    """Tell the rings of a file. One that takes none uses the descriptor."""
    cdef int slot = backend.file_slot
    if slot >= 0:
        context.files[slot] = put_file(&context.ring, slot, backend.fd) and (
            not context.has_polled or put_file(&context.polled, slot, backend.fd))
    backend.locals[context.index] = context  # nothing of its own, but it is here
    return 0


cdef bint leave_file(BlockContext *context, BlockState *backend) noexcept nogil:
    """Have the rings forget it."""
    cdef int slot = backend.file_slot
    if slot >= 0:
        put_file(&context.ring, slot, -1)
        if context.has_polled:
            put_file(&context.polled, slot, -1)
        context.files[slot] = False
    backend.locals[context.index] = NULL
    return True


cdef bint put_file(io_uring *ring, int slot, int fd) noexcept nogil:
    return io_uring_register_files_update(ring, slot, &fd, 1) == 1


# --- can a file be polled? -------------------------------------------------------------------------

def probe_polled(int fd, uint32_t size):
    """Read ``size`` bytes at 0 as ``--iopoll`` would; returns 0 or the errno.

    ``fd`` must be open for O_DIRECT. EOPNOTSUPP: its file system or device has no polling.
    """
    cdef io_uring ring
    cdef io_uring_sqe *sqe
    cdef io_uring_cqe *cqe = NULL
    cdef void *buffer = NULL
    cdef int error
    if posix_memalign(&buffer, PROBE_ALIGNMENT, max(size, <uint32_t> PROBE_ALIGNMENT)):
        return ENOMEM
    error = -open_one(&ring, IORING_SETUP_IOPOLL)
    if error == 0:
        with nogil:
            sqe = io_uring_get_sqe(&ring)
            io_uring_prep_read(sqe, fd, buffer, size, 0)
            io_uring_submit(&ring)
            error = -io_uring_wait_cqe(&ring, &cqe)
            if error == 0 and cqe.res < 0:
                error = -cqe.res
        io_uring_queue_exit(&ring)
    free(buffer)
    return error
