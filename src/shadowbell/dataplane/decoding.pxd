# From a copied SQE to the first block request of its command, or to the status that ends it (NVM
# Command Set 1.0, 3.2). Everything the host says is checked here: opcode, namespace, LBA range, length,
# addresses. Steps beyond the first are in commands.pyx.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from shadowbell.block.backend cimport (
    BLOCK_DISCARD,
    BLOCK_FLUSH,
    BLOCK_FUA,
    BLOCK_READ,
    BLOCK_UNMAP,
    BLOCK_WRITE,
    BLOCK_ZERO,
)
from shadowbell.dataplane.includes.cpu cimport likely, unlikely
from shadowbell.dataplane.layout cimport (
    DMA_READ_ACCESS,
    DMA_WRITE_ACCESS,
    MAX_NAMESPACES,
    MAX_TRANSFER,
    STEP_COMPARE,
    STEP_FLUSH_ALL,
    STEP_RANGES,
    STEP_VERIFY,
    EngineState,
    Request,
    ThreadState,
)
from shadowbell.dataplane.status cimport (
    INVALID_COMMAND_OPCODE,
    INVALID_FIELD_IN_COMMAND,
    INVALID_NAMESPACE_OR_FORMAT,
    LBA_OUT_OF_RANGE,
    NAMESPACE_WRITE_PROTECTED,
    SUCCESS,
)
from shadowbell.dataplane.throttle cimport must_wait
from shadowbell.dataplane.transfer cimport build_iov

cdef enum Opcode:
    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09
    VERIFY = 0x0C

cdef enum:
    ALL_NAMESPACES = 0xFFFFFFFF
    FUA_BIT = 1 << 30
    DEAC_BIT = 1 << 25
    AD_BIT = 1 << 2            # Dataset Management: deallocate
    RANGE_SIZE = 16            # bytes of a Dataset Management range
    HELD = 0x10000             # no status: the command waits for its namespace's limits

cdef packed struct Range:
    uint32_t attributes
    uint32_t blocks
    uint64_t lba


cdef inline uint32_t decode_ranges(ThreadState *thread, Request *request,
                                   const uint8_t *sqe) noexcept nogil:
    """Dataset Management: copy the ranges into the request, then check the copy."""
    cdef uint8_t copy[256 * RANGE_SIZE]
    cdef uint8_t *to = copy
    cdef Range *ranges = <Range *> request.iov
    cdef uint32_t status, pieces, i
    cdef uint64_t blocks = request.ns.blocks
    request.count = ((<const uint32_t *> (sqe + 40))[0] & 0xFF) + 1
    status = build_iov(request.sq.engine.table, &request.sq.hint, sqe,
                       request.count * RANGE_SIZE, DMA_READ_ACCESS, request.iov, &pieces,
                       thread.prp_page)
    if status:
        return status
    for i in range(pieces):
        memcpy(to, request.iov[i].iov_base, request.iov[i].iov_len)
        to += request.iov[i].iov_len
    memcpy(ranges, copy, request.count * RANGE_SIZE)
    for i in range(request.count):
        if ranges[i].lba > blocks or ranges[i].blocks > blocks - ranges[i].lba:
            return LBA_OUT_OF_RANGE
    if not (<const uint32_t *> (sqe + 44))[0] & AD_BIT:
        request.count = 0  # the other attributes are hints that we have no use for
    request.step = STEP_RANGES
    request.block.op = BLOCK_DISCARD
    if request.sq.engine.always_fua:
        request.block.flags = BLOCK_FUA
    return SUCCESS


cdef inline uint32_t decode(ThreadState *thread, Request *request, const uint8_t *sqe,
                            bint later) noexcept nogil:
    """Check the command and fill in its first block request; returns a status."""
    cdef EngineState *engine = request.sq.engine
    cdef uint8_t opcode = request.opcode
    cdef uint32_t index = request.nsid - 1
    cdef uint32_t cdw12 = (<const uint32_t *> (sqe + 48))[0]
    cdef uint64_t blocks
    cdef uint32_t access
    if unlikely(sqe[1] & 3):
        return INVALID_FIELD_IN_COMMAND  # fused operations aren't supported
    request.block.flags = 0
    request.block.niov = 0
    request.block.iov = request.iov
    if likely(opcode == READ or opcode == WRITE):
        request.block.op = BLOCK_READ if opcode == READ else BLOCK_WRITE
        access = DMA_WRITE_ACCESS if opcode == READ else DMA_READ_ACCESS
    elif opcode == FLUSH or opcode == VERIFY or opcode == WRITE_ZEROES:
        access = 0
    elif opcode == COMPARE or opcode == DATASET_MANAGEMENT:
        access = DMA_READ_ACCESS
    else:
        return INVALID_COMMAND_OPCODE
    if opcode == FLUSH and request.nsid == ALL_NAMESPACES:
        request.block.op = BLOCK_FLUSH
        request.step = STEP_FLUSH_ALL
        return SUCCESS
    if unlikely(index >= MAX_NAMESPACES):
        return INVALID_NAMESPACE_OR_FORMAT
    if unlikely(engine.namespaces[index] == NULL):
        return INVALID_FIELD_IN_COMMAND  # valid but inactive: Base 2.0, 3.2.1.4
    request.ns = engine.namespaces[index]
    request.block.backend = request.ns.backend
    if unlikely(request.ns.throttle != NULL) and not later and must_wait(
            thread, request.sq, request.ns, sqe):
        return HELD
    if unlikely(request.ns.read_only
                and (opcode == WRITE or opcode == WRITE_ZEROES
                     or opcode == DATASET_MANAGEMENT)):
        return NAMESPACE_WRITE_PROTECTED
    if opcode == FLUSH:
        request.block.op = BLOCK_FLUSH
        request.block.offset = 0
        request.block.length = 0
        return SUCCESS
    if opcode == DATASET_MANAGEMENT:
        return decode_ranges(thread, request, sqe)

    request.lba = (<const uint64_t *> (sqe + 40))[0]
    blocks = (cdw12 & 0xFFFF) + 1
    if unlikely(request.lba >= request.ns.blocks or blocks > request.ns.blocks - request.lba):
        return LBA_OUT_OF_RANGE
    request.block.offset = request.lba << request.ns.lba_shift
    request.block.length = blocks << request.ns.lba_shift
    if opcode == WRITE or opcode == WRITE_ZEROES:
        if cdw12 & <uint32_t> FUA_BIT or engine.always_fua:
            request.block.flags = BLOCK_FUA
        if opcode == WRITE_ZEROES:
            request.block.op = BLOCK_ZERO
            if cdw12 & DEAC_BIT:
                request.block.flags |= BLOCK_UNMAP
            return SUCCESS
    if opcode == VERIFY:
        request.step = STEP_VERIFY
        request.data_length = request.block.length
        request.block.op = BLOCK_READ
        return SUCCESS
    if unlikely(request.block.length > MAX_TRANSFER):
        return INVALID_FIELD_IN_COMMAND  # beyond MDTS
    request.data_length = request.block.length
    if unlikely(opcode == COMPARE):
        request.step = STEP_COMPARE
        request.block.op = BLOCK_READ
        return build_iov(engine.table, &request.sq.hint, sqe, request.data_length, access,
                         request.iov, &request.data_iovs, thread.prp_page)
    return build_iov(engine.table, &request.sq.hint, sqe, request.data_length, access,
                     request.iov, &request.block.niov, thread.prp_page)
