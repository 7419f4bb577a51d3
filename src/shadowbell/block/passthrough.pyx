"""NVMe namespaces by their generic character devices (/dev/ng0n1): NVMe commands through io_uring.

What the host asks for becomes a command of the device's own, without the kernel's block layer:
Read, Write with FUA, Flush, Write Zeroes, Dataset Management. A transfer larger than the device
takes is split, and one of more pieces than a command holds goes through a bounce buffer.
"""

from libc.errno cimport EAGAIN, EINTR, EIO, ENOSPC, EOPNOTSUPP, EROFS
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

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
    Backend,
    BlockContext,
    BlockRequest,
    BlockState,
    bounce_take,
)
from shadowbell.block.file cimport finish, release, zeros
from shadowbell.block.flushing cimport begin_flush
from shadowbell.block.pieces cimport gather, scatter
from shadowbell.block.rings cimport open_wide_ring
from shadowbell.dataplane.includes.uring cimport (
    IORING_OP_URING_CMD,
    io_uring_get_sqe,
    io_uring_prep_rw,
    io_uring_sqe,
    io_uring_sqe_set_data64,
    iovec,
)

from shadowbell.block.nvme_device import flush_device


cdef extern from "<linux/nvme_ioctl.h>" nogil:
    struct nvme_uring_cmd:
        uint8_t opcode
        uint32_t nsid
        uint64_t addr
        uint32_t data_len
        uint32_t cdw10
        uint32_t cdw11
        uint32_t cdw12
    enum:
        NVME_URING_CMD_IO
        NVME_URING_CMD_IO_VEC

cdef enum:
    # NVM Command Set 1.0, 3.2
    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09
    FUA_BIT = 1 << 30
    DEAC_BIT = 1 << 25
    AD_BIT = 1 << 2
    ZEROES_BLOCKS = 65536      # of a Write Zeroes
    # The kernel's driver takes 127 segments, and memory that looks whole may be single pages.
    MAX_PIECES = 124
    MAX_PART = MAX_PIECES * 4096

cdef enum Stage:
    MOVING
    ZEROING        # Write Zeroes
    FILLING        # writing zeros from a buffer, where the device has no Write Zeroes
    DISCARDING
    SYNCING

cdef packed struct Range:
    uint32_t attributes
    uint32_t blocks
    uint64_t lba


cdef class PassthroughBackend(Backend):
    """A namespace of an NVMe device: ``fd`` belongs to the back end from here on.

    ``lba_shift``: of the device's own blocks. ``max_transfer``: bytes of a command, by MDTS; 0: any.
    ``zeroes`` and ``deallocates``: whether the device has Write Zeroes and Dataset Management.
    ``reads_zeroes``: whether deallocated blocks read as zeros.
    """

    def __init__(self, int fd, size, *, nsid, lba_shift, max_transfer, zeroes, deallocates,
                 reads_zeroes, read_only):
        self.kind = "file"
        self.read_only = read_only
        self.supports_discard = deallocates
        self.discard_zeroes = reads_zeroes
        self.state.fd = fd
        self.state.size = size
        self.state.nsid = nsid
        self.state.lba_shift = lba_shift
        self.state.max_transfer = min(max_transfer or MAX_PART, MAX_PART)
        self.state.can_zero = zeroes
        self.state.can_discard = deallocates
        self.state.submit = passthrough_submit
        self.state.advance = passthrough_advance

    def flush(self):
        if not self.read_only:
            flush_device(self.state.fd, self.state.nsid)

    def close(self):
        if not self.closed:
            self.closed = True
            os.close(self.state.fd)
            self.state.fd = -1


cdef int passthrough_submit(BlockContext *context, BlockRequest *request) noexcept nogil:
    cdef BlockState *backend = request.backend
    request.done = 0
    request.bounce = NULL
    request.result = 0
    if request.op == BLOCK_READ or request.op == BLOCK_WRITE:
        request.stage = MOVING
        if needs_bounce(request):
            request.bounce = bounce_take(context)
            if request.bounce == NULL:
                return BLOCK_BUSY
            if request.op == BLOCK_WRITE:
                gather(request)
    elif request.op == BLOCK_FLUSH:
        request.stage = SYNCING
        request.generation = begin_flush(backend)
        if request.generation == 0:
            return BLOCK_DONE
    elif request.op == BLOCK_DISCARD:
        request.stage = DISCARDING
        if not backend.can_discard:
            return BLOCK_DONE  # a hint that nobody can take
    else:
        request.stage = ZEROING if backend.can_zero else FILLING
    if queue_command(context, request):
        return BLOCK_PENDING
    release(context, request)
    return BLOCK_BUSY


cdef int passthrough_advance(BlockContext *context, BlockRequest *request,
                             int res) noexcept nogil:
    """Take one completion: 0, an NVMe status, or -errno when the command never left."""
    cdef int error
    if res == 0:
        request.done += part(request)
        if request.done < request.length:
            return again(context, request)
        if request.bounce != NULL and request.op == BLOCK_READ:
            scatter(request)
        return finish(context, request, 0)
    if res == -EAGAIN or res == -EINTR:
        return again(context, request)
    error = meaning(res)
    if error == -EOPNOTSUPP and request.stage == ZEROING:
        request.backend.can_zero = False
        request.stage = FILLING
        return again(context, request)
    if error == -EOPNOTSUPP and request.stage == DISCARDING:
        request.backend.can_discard = False
        return finish(context, request, 0)
    return finish(context, request, error)


cdef int meaning(int res) noexcept nogil:
    """The errno for an NVMe status: status code type and code, NVMe Base 2.0, 4.2.3."""
    cdef int status = res & 0x7FF
    if res < 0:
        return res
    if status == 0x01 or status == 0x02:  # Invalid Command Opcode, Invalid Field in Command
        return -EOPNOTSUPP
    if status == 0x81:                    # Capacity Exceeded
        return -ENOSPC
    if status == 0x20 or status == 0x182:  # Namespace is Write Protected, Write to Read Only Range
        return -EROFS
    return -EIO


cdef bint needs_bounce(BlockRequest *request) noexcept nogil:
    return request.niov > 1 and (
        request.niov > MAX_PIECES or request.length > request.backend.max_transfer)


cdef uint64_t part(BlockRequest *request) noexcept nogil:
    """Bytes of the next command, which begins at ``done``."""
    cdef BlockState *backend = request.backend
    cdef uint64_t left = request.length - request.done
    if request.stage == MOVING or request.stage == FILLING:
        return min(left, backend.max_transfer)
    if request.stage == ZEROING:
        return min(left, <uint64_t> ZEROES_BLOCKS << backend.lba_shift)
    return min(left, <uint64_t> 0xFFFFFFFF << backend.lba_shift)


cdef uint32_t build(BlockRequest *request, nvme_uring_cmd *command) noexcept nogil:
    """Fill in the next command; returns the operation for the ring."""
    cdef BlockState *backend = request.backend
    cdef uint64_t size = part(request)
    cdef uint64_t lba = (request.offset + request.done) >> backend.lba_shift
    cdef uint32_t blocks = <uint32_t> (size >> backend.lba_shift)
    cdef Range *discarded = <Range *> &request.single
    memset(command, 0, sizeof(nvme_uring_cmd))
    command.nsid = backend.nsid
    if request.stage == SYNCING:
        command.opcode = FLUSH
        return NVME_URING_CMD_IO
    if request.stage == DISCARDING:
        discarded.attributes = 0
        discarded.blocks = blocks
        discarded.lba = lba
        command.opcode = DATASET_MANAGEMENT
        command.addr = <uint64_t> discarded
        command.data_len = sizeof(Range)
        command.cdw11 = AD_BIT  # and one range, in dword 10, counted from 0
        return NVME_URING_CMD_IO
    command.cdw10 = <uint32_t> lba
    command.cdw11 = <uint32_t> (lba >> 32)
    command.cdw12 = blocks - 1
    if request.op != BLOCK_READ and request.flags & BLOCK_FUA:
        command.cdw12 |= <uint32_t> FUA_BIT
    if request.stage == ZEROING:
        command.opcode = WRITE_ZEROES
        if request.flags & BLOCK_UNMAP:
            command.cdw12 |= <uint32_t> DEAC_BIT
        return NVME_URING_CMD_IO
    command.opcode = READ if request.op == BLOCK_READ else WRITE
    command.data_len = <uint32_t> size
    if request.stage == FILLING:
        command.addr = <uint64_t> zeros
    elif request.bounce != NULL:
        command.addr = <uint64_t> request.bounce + request.done
    elif request.niov == 1:
        command.addr = <uint64_t> request.iov.iov_base + request.done
    else:
        command.addr = <uint64_t> request.iov
        command.data_len = request.niov
        return NVME_URING_CMD_IO_VEC
    return NVME_URING_CMD_IO


cdef bint queue_command(BlockContext *context, BlockRequest *request) noexcept nogil:
    cdef io_uring_sqe *sqe
    if not open_wide_ring(context):
        return False
    sqe = io_uring_get_sqe(&context.wide)
    if sqe == NULL:
        return False
    io_uring_prep_rw(IORING_OP_URING_CMD, sqe, request.backend.fd, NULL, 0, 0)
    sqe.cmd_op = build(request, <nvme_uring_cmd *> sqe.cmd)
    io_uring_sqe_set_data64(sqe, <uint64_t> request)
    context.commanding += 1
    return True


cdef int again(BlockContext *context, BlockRequest *request) noexcept nogil:
    if queue_command(context, request):
        return BLOCK_PENDING
    return finish(context, request, -EAGAIN)  # never: the ring is larger than what can be under way


# --- what tests see ---------------------------------------------------------------------------------

def command_for(op, *, nsid=1, lba_shift=9, max_transfer=0, offset=0, length=0, done=0, flags=0,
                pieces=(), zeroes=True):
    """The next command of a request, as ``(vectored, opcode, nsid, address, data length, cdw10 to
    12, bytes)``; ``pieces`` are ``(address, length)``. For a discard the address is replaced by its
    range, as ``(attributes, blocks, lba)``."""
    cdef BlockState state
    cdef BlockRequest request
    cdef nvme_uring_cmd command
    cdef iovec iov[512]
    cdef Range *discarded = <Range *> &request.single
    memset(&state, 0, sizeof(state))
    memset(&request, 0, sizeof(request))
    state.nsid = nsid
    state.lba_shift = lba_shift
    state.max_transfer = min(max_transfer or MAX_PART, MAX_PART)
    request.backend = &state
    request.op = op
    request.flags = flags
    request.offset = offset
    request.length = length
    request.done = done
    for i, (address, size) in enumerate(pieces):
        iov[i].iov_base = <void *> <uint64_t> address
        iov[i].iov_len = size
    request.iov = iov
    request.niov = len(pieces)
    request.stage = (
        SYNCING if op == BLOCK_FLUSH else DISCARDING if op == BLOCK_DISCARD
        else MOVING if op != BLOCK_ZERO else ZEROING if zeroes else FILLING)
    vectored = build(&request, &command) == NVME_URING_CMD_IO_VEC
    address = command.addr
    if op == BLOCK_DISCARD:
        address = (discarded.attributes, discarded.blocks, discarded.lba)
    return (vectored, command.opcode, command.nsid, address, command.data_len, command.cdw10,
            command.cdw11, command.cdw12, part(&request))


def status_meaning(int res):
    """What a completion says: 0 or -errno."""
    return meaning(res) if res else 0


OPS = {"read": BLOCK_READ, "write": BLOCK_WRITE, "flush": BLOCK_FLUSH, "zero": BLOCK_ZERO,
       "discard": BLOCK_DISCARD}
FUA, UNMAP = BLOCK_FUA, BLOCK_UNMAP
