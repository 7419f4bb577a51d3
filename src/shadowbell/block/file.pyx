"""Files and block devices, by io_uring.

O_DIRECT where the file allows it, so that a completed write isn't in the host's page cache only and
data moves once. Flush is fdatasync, FUA is RWF_DSYNC, deallocate punches a hole, write zeroes is a
zero range. What the file system can't do is done another way, and remembered.
"""

from libc.errno cimport EAGAIN, EINTR, EINVAL, EIO, ENOSYS, EOPNOTSUPP
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, mmap

import os

from shadowbell.block.backend cimport (
    BLOCK_BUSY,
    BLOCK_DISCARD,
    BLOCK_DONE,
    BLOCK_FLUSH,
    BLOCK_FUA,
    BLOCK_PENDING,
    BLOCK_READ,
    BLOCK_UNMAP,
    BLOCK_WRITE,
    BLOCK_ZERO,
    BOUNCE_SIZE,
    Backend,
    BlockContext,
    BlockRequest,
    BlockState,
    bounce_give,
    bounce_take,
)
from shadowbell.block.pieces cimport gather, scatter
from shadowbell.dataplane.includes.uring cimport (
    IORING_FSYNC_DATASYNC,
    io_uring_get_sqe,
    io_uring_prep_fallocate,
    io_uring_prep_fsync,
    io_uring_prep_readv2,
    io_uring_prep_writev2,
    io_uring_sqe,
    io_uring_sqe_set_data64,
    iovec,
)


cdef extern from *:
    """
    #include <fcntl.h>
    #include <sys/stat.h>

    /* What O_DIRECT asks of addresses and offsets; 0 when the kernel doesn't tell (before 6.1). */
    static void sb_direct_alignment(int fd, uint32_t *memory, uint32_t *offset)
    {
        *memory = *offset = 0;
    #ifdef STATX_DIOALIGN
        struct statx st;
        if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) == 0 &&
            (st.stx_mask & STATX_DIOALIGN)) {
            *memory = st.stx_dio_mem_align;
            *offset = st.stx_dio_offset_align;
        }
    #endif
    }
    """
    void sb_direct_alignment(int fd, uint32_t *memory, uint32_t *offset)
    enum:
        FALLOC_FL_KEEP_SIZE
        FALLOC_FL_PUNCH_HOLE
        FALLOC_FL_ZERO_RANGE
        RWF_DSYNC

cdef enum Stage:
    MOVING     # reading or writing the data
    PUNCHING   # fallocate: punch hole
    RANGING    # fallocate: zero range
    ZEROING    # writing zeros from a buffer
    SYNCING    # the fdatasync behind a FUA that has no flag of its own

# A read-only page range of zeros, shared by all.
cdef void *zeros = mmap(NULL, BOUNCE_SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
if zeros == MAP_FAILED:
    raise MemoryError("no memory for the block of zeros")


def direct_alignment(int fd):
    """Return (address alignment, offset alignment) in bytes for O_DIRECT, zeros when unknown."""
    cdef uint32_t memory, offset
    sb_direct_alignment(fd, &memory, &offset)
    return memory, offset


cdef class FileBackend(Backend):
    """An open image: ``fd`` belongs to the back end from here on.

    ``memory_align`` and ``length_align`` are the alignments in bytes of addresses and of each
    piece's length that O_DIRECT needs, 1 for buffered access.
    """

    def __init__(self, int fd, size, *, memory_align, length_align, read_only):
        self.kind = "file"
        self.read_only = read_only
        self.supports_discard = True
        self.state.fd = fd
        self.state.size = size
        self.state.memory_align = memory_align
        self.state.length_align = length_align
        self.state.can_punch = True
        self.state.can_zero = True
        self.state.submit = file_submit
        self.state.advance = file_advance

    def measure(self):
        return os.lseek(self.state.fd, 0, os.SEEK_END)

    def provide(self, uint64_t size):
        found = self.measure()
        if size < found:
            raise OSError(EINVAL, "a smaller size loses data: truncate the file yourself")
        if size > found:
            os.ftruncate(self.state.fd, size)

    def flush(self):
        if not self.read_only:
            os.fdatasync(self.state.fd)

    def close(self):
        if not self.closed:
            self.closed = True
            os.close(self.state.fd)
            self.state.fd = -1


cdef int file_submit(BlockContext *context, BlockRequest *request) noexcept nogil:
    request.done = 0
    request.bounce = NULL
    if request.op == BLOCK_READ or request.op == BLOCK_WRITE:
        request.stage = MOVING
        if request.backend.memory_align > 1 and not aligned(request):
            request.bounce = bounce_take(context)
            if request.bounce == NULL:
                return BLOCK_BUSY
            if request.op == BLOCK_WRITE:
                gather(request)
    elif request.op == BLOCK_FLUSH:
        request.stage = SYNCING
    elif request.op == BLOCK_DISCARD:
        request.stage = PUNCHING
        if not request.backend.can_punch:
            request.result = 0  # a hint that nobody can take
            return BLOCK_DONE
    else:
        request.stage = first_way_to_zero(request)
    if queue_part(context, request):
        return BLOCK_PENDING
    release(context, request)
    return BLOCK_BUSY


cdef int file_advance(BlockContext *context, BlockRequest *request, int res) noexcept nogil:
    """Take one completion of the ring; what is left of the request is queued again."""
    if res == -EAGAIN or res == -EINTR:
        return again(context, request)
    if request.stage == MOVING:
        if res <= 0:
            # Nothing read where the disk should have bytes: the image was cut short.
            return finish(context, request, res if res < 0 else -EIO)
        request.done += <uint32_t> res
        if request.done < request.length:
            if request.bounce == NULL:
                skip(request, <uint32_t> res)
            return again(context, request)
        if request.bounce != NULL and request.op == BLOCK_READ:
            scatter(request)
        return finish(context, request, 0)
    if request.stage == ZEROING:
        if res <= 0:
            return finish(context, request, res if res < 0 else -EIO)
        request.done += <uint32_t> res
        if request.done < request.length:
            return again(context, request)
        return sync_or_finish(context, request)
    if request.stage == SYNCING:
        return finish(context, request, res)
    if res == 0:
        return sync_or_finish(context, request)
    if res != -EOPNOTSUPP and res != -EINVAL and res != -ENOSYS:
        return finish(context, request, res)
    if request.stage == PUNCHING:
        request.backend.can_punch = False
        if request.op == BLOCK_DISCARD:
            return finish(context, request, 0)
    else:
        request.backend.can_zero = False
    request.stage = first_way_to_zero(request)
    return again(context, request)


cdef int first_way_to_zero(BlockRequest *request) noexcept nogil:
    """A zero range keeps the space, as Write Zeroes means; a hole frees it, as Deallocate means."""
    if request.flags & BLOCK_UNMAP and request.backend.can_punch:
        return PUNCHING
    if request.backend.can_zero:
        return RANGING
    return PUNCHING if request.backend.can_punch else ZEROING


cdef bint queue_part(BlockContext *context, BlockRequest *request) noexcept nogil:
    cdef io_uring_sqe *sqe = io_uring_get_sqe(&context.ring)
    cdef uint64_t offset = request.offset + request.done
    cdef uint64_t left = request.length - request.done
    cdef int fd = request.backend.fd
    cdef int flags = RWF_DSYNC if request.flags & BLOCK_FUA else 0
    cdef iovec *iov = request.iov
    cdef uint32_t niov = request.niov
    if sqe == NULL:
        return False
    if request.stage == MOVING:
        if request.bounce != NULL:
            request.single.iov_base = <uint8_t *> request.bounce + request.done
            request.single.iov_len = left
            iov = &request.single
            niov = 1
        if request.op == BLOCK_READ:
            io_uring_prep_readv2(sqe, fd, iov, niov, offset, 0)
        else:
            io_uring_prep_writev2(sqe, fd, iov, niov, offset, flags)
    elif request.stage == ZEROING:
        request.single.iov_base = zeros
        request.single.iov_len = min(left, <uint64_t> BOUNCE_SIZE)
        io_uring_prep_writev2(sqe, fd, &request.single, 1, offset, 0)
    elif request.stage == PUNCHING:
        io_uring_prep_fallocate(
            sqe, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, left)
    elif request.stage == RANGING:
        io_uring_prep_fallocate(
            sqe, fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, left)
    else:
        io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC)
    io_uring_sqe_set_data64(sqe, <uint64_t> request)
    return True


cdef int again(BlockContext *context, BlockRequest *request) noexcept nogil:
    if queue_part(context, request):
        return BLOCK_PENDING
    # The ring has more entries than requests can be under way, so this doesn't happen.
    return finish(context, request, -EAGAIN)


cdef int sync_or_finish(BlockContext *context, BlockRequest *request) noexcept nogil:
    if request.flags & BLOCK_FUA:
        request.stage = SYNCING
        return again(context, request)
    return finish(context, request, 0)


cdef int finish(BlockContext *context, BlockRequest *request, int result) noexcept nogil:
    release(context, request)
    request.result = result
    return BLOCK_DONE


cdef void release(BlockContext *context, BlockRequest *request) noexcept nogil:
    if request.bounce != NULL:
        bounce_give(context, request.bounce)
        request.bounce = NULL


cdef bint aligned(BlockRequest *request) noexcept nogil:
    cdef uint64_t bases = 0, lengths = 0
    cdef uint32_t i
    for i in range(request.niov):
        bases |= <uint64_t> request.iov[i].iov_base
        lengths |= request.iov[i].iov_len
    return (bases & (request.backend.memory_align - 1)
            | lengths & (request.backend.length_align - 1)) == 0


cdef void skip(BlockRequest *request, uint64_t count) noexcept nogil:
    """Drop ``count`` bytes from the front of the iovec: they have moved."""
    while count and count >= request.iov.iov_len:
        count -= request.iov.iov_len
        request.iov += 1
        request.niov -= 1
    if count:
        request.iov.iov_base = <uint8_t *> request.iov.iov_base + count
        request.iov.iov_len -= count
