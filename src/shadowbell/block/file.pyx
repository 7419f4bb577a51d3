"""Files and block devices, by io_uring.

O_DIRECT where the file allows it, so that a completed write isn't in the host's page cache only and
data moves once. Flush is fdatasync, unless nothing is volatile; FUA is RWF_DSYNC. Deallocate punches
a hole, write zeroes is a zero range; a device that has no such command gets discards. What the file
system can't do is done another way, and remembered.
"""

from libc.errno cimport EAGAIN, EINTR, EINVAL, EIO, ENOSYS, EOPNOTSUPP
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
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
    FixedTable,
    bounce_give,
    bounce_take,
)
from shadowbell.block.fixed cimport fixed_buffer
from shadowbell.block.flushing cimport begin_flush, end_flush, mark_written
from shadowbell.block.pieces cimport gather, scatter
from shadowbell.block.rings cimport (
    enter_file,
    give_file_slot,
    leave_file,
    start_some,
    take_file_slot,
    use_file,
)
from shadowbell.dataplane.includes.uring cimport (
    IORING_FSYNC_DATASYNC,
    IORING_OP_READ_FIXED,
    IORING_OP_READV_FIXED,
    IORING_OP_URING_CMD,
    IORING_OP_WRITE_FIXED,
    IORING_OP_WRITEV_FIXED,
    io_uring,
    io_uring_get_sqe,
    io_uring_prep_fallocate,
    io_uring_prep_fsync,
    io_uring_prep_read,
    io_uring_prep_readv2,
    io_uring_prep_rw,
    io_uring_prep_write,
    io_uring_prep_writev2,
    io_uring_sqe,
    io_uring_sqe_set_data64,
    iovec,
)


cdef extern from *:
    """
    #include <fcntl.h>
    #include <linux/magic.h>
    #include <sys/ioctl.h>
    #include <sys/stat.h>
    #include <sys/vfs.h>

    /* linux/blkdev.h, Linux 6.12: BLKDISCARD that a ring can wait for. */
    #define SB_RING_DISCARD _IO(0x12, 0)

    static int sb_in_memory(int fd)
    {
        struct statfs st;
        return fstatfs(fd, &st) == 0 && (st.f_type == TMPFS_MAGIC || st.f_type == RAMFS_MAGIC);
    }

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
    bint sb_in_memory(int fd)
    enum:
        RING_DISCARD "SB_RING_DISCARD"
        FALLOC_FL_KEEP_SIZE
        FALLOC_FL_PUNCH_HOLE
        FALLOC_FL_ZERO_RANGE
        RWF_DSYNC

cdef enum Stage:
    MOVING     # reading or writing the data
    DISCARDING # a block device's discard
    PUNCHING   # fallocate: punch hole
    RANGING    # fallocate: zero range
    ZEROING    # writing zeros from a buffer
    SYNCING    # the fdatasync behind a FUA that has no flag of its own

# Shared by all.
zeros = mmap(NULL, BOUNCE_SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
if zeros == MAP_FAILED:
    raise MemoryError("no memory for the block of zeros")


def direct_alignment(int fd):
    """Return (address alignment, offset alignment) in bytes for O_DIRECT, zeros when unknown."""
    cdef uint32_t memory, offset
    sb_direct_alignment(fd, &memory, &offset)
    return memory, offset


def in_memory(int fd):
    """Is the file on a file system that keeps its files in memory?"""
    return bool(sb_in_memory(fd))


cdef class FileBackend(Backend):
    """An open image: ``fd`` belongs to the back end from here on.

    ``memory_align`` and ``length_align`` are the alignments in bytes of addresses and of each
    piece's length that O_DIRECT needs, 1 for buffered access. ``discards``: a block device that
    deallocates by discard only, which leaves the contents undefined. ``polled``: IOThreads fetch
    completions from the device.
    """

    def __init__(self, int fd, size, *, memory_align, length_align, read_only, discards=False,
                 polled=False):
        self.kind = "file"
        self.read_only = read_only
        self.supports_discard = True
        self.state.fd = fd
        self.state.size = size
        self.state.memory_align = memory_align
        self.state.length_align = length_align
        self.state.file_slot = take_file_slot()
        self.state.can_discard = discards
        self.discard_zeroes = not discards
        self.state.polled = polled
        self.state.can_punch = not discards
        self.state.can_zero = True
        self.state.submit = file_submit
        self.state.advance = file_advance
        self.state.enter = enter_file
        self.state.leave = leave_file

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
            give_file_slot(self.state.file_slot)
            self.state.fd = self.state.file_slot = -1


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
        request.generation = begin_flush(request.backend)
        if request.generation == 0:
            request.result = 0
            return BLOCK_DONE
    elif request.op == BLOCK_DISCARD:
        request.stage = DISCARDING if request.backend.can_discard else PUNCHING
        if not (request.backend.can_discard or request.backend.can_punch):
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
    if request.stage == DISCARDING:
        request.backend.can_discard = False
        return finish(context, request, 0)
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
    """Put what is to be done next into the ring; False when that is full."""
    cdef BlockState *backend = request.backend
    cdef bint fua = request.flags & BLOCK_FUA
    # A polled ring takes nothing but reads and writes; what FUA adds to one isn't polled for.
    cdef bint polled = request.stage == MOVING and backend.polled and not fua and context.has_polled
    cdef io_uring *ring = &context.polled if polled else &context.ring
    cdef io_uring_sqe *sqe = io_uring_get_sqe(ring)
    cdef uint64_t offset = request.offset + request.done
    cdef uint64_t left = request.length - request.done
    if sqe == NULL:
        return False
    if request.stage == MOVING:
        if request.bounce != NULL:
            request.single.iov_base = <uint8_t *> request.bounce + request.done
            request.single.iov_len = left
            move(sqe, request, &request.single, 1, offset)
        elif not move_fixed(&context.fixed, sqe, request, offset):
            move(sqe, request, request.iov, request.niov, offset)
        if fua:
            sqe.rw_flags = RWF_DSYNC
    elif request.stage == ZEROING:
        io_uring_prep_write(sqe, 0, zeros, min(left, <uint64_t> BOUNCE_SIZE), offset)
    elif request.stage == PUNCHING:
        io_uring_prep_fallocate(
            sqe, 0, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, left)
    elif request.stage == RANGING:
        io_uring_prep_fallocate(
            sqe, 0, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, left)
    elif request.stage == DISCARDING:
        io_uring_prep_rw(IORING_OP_URING_CMD, sqe, 0, <void *> offset, 0, 0)
        sqe.cmd_op = RING_DISCARD
        sqe.addr3 = left
    else:
        io_uring_prep_fsync(sqe, 0, IORING_FSYNC_DATASYNC)
    use_file(context, backend, sqe)
    io_uring_sqe_set_data64(sqe, <uint64_t> request)
    context.polling += polled
    if request.stage == MOVING and backend.memory_align > 1:
        start_some(ring)
    return True


cdef inline bint move_fixed(FixedTable *table, io_uring_sqe *sqe, BlockRequest *request,
                            uint64_t offset) noexcept nogil:
    """False unless the rings have the memory registered."""
    cdef iovec *iov = request.iov
    cdef bint reads = request.op == BLOCK_READ
    cdef int slot = fixed_buffer(table, iov, request.niov)
    if slot < 0:
        return False
    if request.niov == 1:
        io_uring_prep_rw(IORING_OP_READ_FIXED if reads else IORING_OP_WRITE_FIXED, sqe, 0,
                         iov.iov_base, <unsigned> iov.iov_len, offset)
    else:
        io_uring_prep_rw(IORING_OP_READV_FIXED if reads else IORING_OP_WRITEV_FIXED, sqe, 0,
                         iov, request.niov, offset)
    sqe.buf_index = <uint16_t> slot
    table.transfers += 1
    return True


cdef inline void move(io_uring_sqe *sqe, BlockRequest *request, iovec *iov, uint32_t niov,
                      uint64_t offset) noexcept nogil:
    """A transfer of one piece spares the kernel the copy of the iovec."""
    cdef iovec one = iov[0]
    if request.op == BLOCK_READ:
        if niov == 1:
            io_uring_prep_read(sqe, 0, one.iov_base, <unsigned> one.iov_len, offset)
        else:
            io_uring_prep_readv2(sqe, 0, iov, niov, offset, 0)
    elif niov == 1:
        io_uring_prep_write(sqe, 0, one.iov_base, <unsigned> one.iov_len, offset)
    else:
        io_uring_prep_writev2(sqe, 0, iov, niov, offset, 0)


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
    if request.op == BLOCK_FLUSH:
        if result == 0:
            end_flush(request.backend, request.generation)
    elif request.op != BLOCK_READ and (result or not request.flags & BLOCK_FUA):
        mark_written(request.backend)
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
