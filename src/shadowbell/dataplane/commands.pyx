"""I/O commands (NVM Command Set 1.0, 3.2): from a copied SQE to its completion.

Most commands are one request to the block back end. The others take steps: Compare reads and then
compares, Verify reads piece by piece, Dataset Management discards range by range, Flush of all
namespaces flushes one after the other.

Not implemented: Write Uncorrectable, Copy, reservations, fused operations, metadata.
"""

from libc.errno cimport EOPNOTSUPP
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from shadowbell.block.backend cimport (
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
    BlockContext,
    BlockRequest,
    bounce_give,
    bounce_take,
)
from shadowbell.dataplane.events cimport push_event
from shadowbell.dataplane.faults cimport is_media_error, status_of_errno
from shadowbell.dataplane.includes.cpu cimport likely, unlikely
from shadowbell.dataplane.includes.uring cimport iovec
from shadowbell.dataplane.interrupts cimport want_interrupt
from shadowbell.dataplane.layout cimport (
    DMA_READ_ACCESS,
    DMA_WRITE_ACCESS,
    EVENT_IO_ERROR,
    PHASE_SHIFT,
    SQE_SIZE,
    MAX_IOVECS,
    MAX_NAMESPACES,
    MAX_TRANSFER,
    OPCODES,
    STEP_BLOCK,
    STEP_COMPARE,
    STEP_FLUSH_ALL,
    STEP_RANGES,
    STEP_VERIFY,
    EngineState,
    NamespaceEntry,
    Request,
    SubmissionQueue,
    ThreadState,
)
from shadowbell.dataplane.queues cimport (
    latency_bucket,
    post_completion,
    publish,
    ticks_to_ns,
)
from shadowbell.dataplane.status cimport (
    COMPARE_FAILURE,
    DATA_TRANSFER_ERROR,
    DO_NOT_RETRY,
    INVALID_COMMAND_OPCODE,
    INVALID_FIELD_IN_COMMAND,
    INVALID_NAMESPACE_OR_FORMAT,
    LBA_OUT_OF_RANGE,
    NAMESPACE_WRITE_PROTECTED,
    SUCCESS,
)
from shadowbell.dataplane.throttle cimport must_wait, take_held
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
    HELD_BATCH = 64            # held commands that are started in a round
    GATHERED_BYTES = 8192      # no completion waits for a longer copy, nor for other commands

cdef enum Next:
    FINISHED                   # the command has its status
    UNDER_WAY                  # the ring will tell
    TRY_AGAIN                  # no room: in the thread's waiting list

cdef packed struct Range:
    uint32_t attributes
    uint32_t blocks
    uint64_t lba


cdef void start_command(ThreadState *thread, SubmissionQueue *sq, const uint8_t *sqe,
                        uint64_t since, bint later) noexcept nogil:
    """Start a command; its completion slot and a request were made sure of by the caller.

    since: ticks, when it was fetched. later: it was held before, and its time has come.
    """
    cdef Request *request
    cdef uint32_t status
    thread.free_count -= 1
    request = thread.free_requests[thread.free_count]
    request.sq = sq
    request.start = since
    request.opcode = sqe[0]
    request.cid = (<const uint16_t *> (sqe + 2))[0]
    request.nsid = (<const uint32_t *> (sqe + 4))[0]
    request.step = STEP_BLOCK
    request.scratch = NULL
    request.data_length = 0
    request.lba = 0
    request.index = 0
    status = decode(thread, request, sqe, later)
    if likely(status == SUCCESS):
        if unlikely(request.data_length > GATHERED_BYTES
                    or request.opcode != READ and request.opcode != WRITE):
            sq.cq.gather = False
            if sq.cq.gathered:
                publish(sq.cq)
        proceed(thread, request, later)
    elif status == HELD:
        thread.free_count += 1  # the request is still where it was taken from
    else:
        finish_command(thread, request, status | DO_NOT_RETRY
                       if status != DATA_TRANSFER_ERROR else status, later)


cdef bint start_held(ThreadState *thread) noexcept nogil:
    """Start the held commands whose time has come, a batch of them; False: there is none."""
    cdef uint8_t sqe[SQE_SIZE]
    cdef SubmissionQueue *sq = NULL
    cdef uint64_t arrived
    cdef uint32_t started = 0
    while started < HELD_BATCH and thread.free_count and take_held(thread, sqe, &sq, &arrived):
        start_command(thread, sq, sqe, arrived, True)
        started += 1
    return started != 0


cdef void refuse_command(ThreadState *thread, SubmissionQueue *sq, const uint8_t *sqe,
                         uint64_t since) noexcept nogil:
    """End a fetched command whose namespace went away before it was started."""
    account(thread, sq, sqe[0], INVALID_FIELD_IN_COMMAND | DO_NOT_RETRY,
            (<const uint16_t *> (sqe + 2))[0], (<const uint32_t *> (sqe + 4))[0], 0)
    sq.counters.latency[latency_bucket(ticks_to_ns(thread, thread.now - since))] += 1


# --- decoding -------------------------------------------------------------------------------------

cdef uint32_t decode(ThreadState *thread, Request *request, const uint8_t *sqe,
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


cdef uint32_t decode_ranges(ThreadState *thread, Request *request,
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


# --- steps ----------------------------------------------------------------------------------------

cdef void proceed(ThreadState *thread, Request *request, bint later) noexcept nogil:
    """Run a command's steps until it waits for the ring or is finished.

    later: the command was under way before, so its latency is its own.
    """
    cdef int submitted
    while prepare(thread, request):
        if request.block.backend == NULL:
            wait_for_room(thread, request)
            return
        submitted = request.block.backend.submit(&thread.block, &request.block)
        if submitted == BLOCK_PENDING:
            return
        if submitted != BLOCK_DONE:
            wait_for_room(thread, request)
            return
        if step_over(request):
            finish_command(thread, request, outcome(request), later)
            return
    finish_command(thread, request, SUCCESS, later)


cdef void advance_command(ThreadState *thread, Request *request, int res) noexcept nogil:
    """A completion of the ring belongs to this command."""
    if request.block.backend.advance(&thread.block, &request.block, res) == BLOCK_DONE:
        go_on(thread, request)


cdef void complete_command(BlockContext *context, BlockRequest *block,
                           int result) noexcept nogil:
    """A back end has ended the pending request of a command, on the command's own IOThread."""
    block.result = result
    go_on(<ThreadState *> context, <Request *> block)


cdef void go_on(ThreadState *thread, Request *request) noexcept nogil:
    if step_over(request):
        finish_command(thread, request, outcome(request), True)
    else:
        proceed(thread, request, True)


cdef bint prepare(ThreadState *thread, Request *request) noexcept nogil:
    """Fill in the next block request of a command with steps; False: there is none left.

    A command that needs a bounce buffer and finds none has its back end cleared, to be tried again.
    """
    cdef Range *ranges
    cdef EngineState *engine
    cdef uint64_t done
    if likely(request.step == STEP_BLOCK):
        return True
    if request.step == STEP_RANGES:
        ranges = <Range *> request.iov
        while request.index < request.count and ranges[request.index].blocks == 0:
            request.index += 1
        if request.index >= request.count:
            return False
        request.block.offset = ranges[request.index].lba << request.ns.lba_shift
        request.block.length = (
            <uint64_t> ranges[request.index].blocks << request.ns.lba_shift)
        return True
    if request.step == STEP_FLUSH_ALL:
        engine = request.sq.engine
        while request.index < MAX_NAMESPACES and engine.namespaces[request.index] == NULL:
            request.index += 1
        if request.index == MAX_NAMESPACES:
            return False
        request.block.backend = engine.namespaces[request.index].backend
        request.block.offset = 0
        request.block.length = 0
        return True
    # Compare and Verify read into a buffer of ours.
    if request.scratch == NULL:
        request.scratch = bounce_take(&thread.block)
        if request.scratch == NULL:
            request.block.backend = NULL
            return True
        request.block.backend = request.ns.backend
    if request.step == STEP_VERIFY:
        done = <uint64_t> request.index * BOUNCE_SIZE
        request.block.offset = (request.lba << request.ns.lba_shift) + done
        request.block.length = min(request.data_length - done, <uint64_t> BOUNCE_SIZE)
    request.iov[MAX_IOVECS].iov_base = request.scratch
    request.iov[MAX_IOVECS].iov_len = request.block.length
    request.block.iov = &request.iov[MAX_IOVECS]
    request.block.niov = 1
    return True


cdef bint step_over(Request *request) noexcept nogil:
    """A block request is done; is it the command's last?"""
    if likely(request.step == STEP_BLOCK) or request.step == STEP_COMPARE:
        return True
    if request.block.result < 0 and not (request.step == STEP_RANGES
                                         and request.block.result == -EOPNOTSUPP):
        return True
    request.index += 1
    if request.step == STEP_VERIFY:
        return <uint64_t> request.index * BOUNCE_SIZE >= request.data_length
    return False


cdef uint32_t outcome(Request *request) noexcept nogil:
    """The status of a command whose last block request is done."""
    cdef int result = request.block.result
    cdef const uint8_t *data
    cdef uint32_t i, status
    if likely(result >= 0):
        if request.step == STEP_COMPARE:
            data = <const uint8_t *> request.scratch
            for i in range(request.data_iovs):
                if memcmp(data, request.iov[i].iov_base, request.iov[i].iov_len) != 0:
                    return COMPARE_FAILURE
                data += request.iov[i].iov_len
        return SUCCESS
    status = status_of_errno(request.block.op, -result)
    if is_media_error(status):
        request.sq.counters.media_errors += 1
    return status


cdef void wait_for_room(ThreadState *thread, Request *request) noexcept nogil:
    request.next_waiting = NULL
    thread.waiting_tail[0] = request
    thread.waiting_tail = &request.next_waiting


cdef bint retry_waiting(ThreadState *thread) noexcept nogil:
    """Try the commands again that found no room; those that find none now wait on, in order."""
    cdef Request *request = thread.waiting
    cdef Request *following
    cdef bint moved = False
    thread.waiting = NULL
    thread.waiting_tail = &thread.waiting
    while request != NULL:
        following = request.next_waiting
        proceed(thread, request, True)
        if thread.waiting == NULL:
            moved = True
        request = following
    return moved


# --- completion -----------------------------------------------------------------------------------

cdef void finish_command(ThreadState *thread, Request *request, uint32_t status,
                         bint later) noexcept nogil:
    cdef SubmissionQueue *sq = request.sq
    if request.scratch != NULL:
        bounce_give(&thread.block, request.scratch)
    if likely(status == SUCCESS):
        if request.opcode == READ:
            sq.counters.bytes_read += request.data_length
        elif request.opcode == WRITE:
            sq.counters.bytes_written += request.data_length
    if later:
        sq.counters.latency[latency_bucket(ticks_to_ns(thread, thread.now - request.start))] += 1
    else:
        thread.finished_now += 1
    account(thread, sq, request.opcode, status, request.cid, request.nsid, request.lba)
    thread.free_requests[thread.free_count] = request
    thread.free_count += 1


cdef void account(ThreadState *thread, SubmissionQueue *sq, uint8_t opcode, uint32_t status,
                  uint16_t cid, uint32_t nsid, uint64_t lba) noexcept nogil:
    """Count a command that ended, and post its completion."""
    sq.counters.commands[opcode if opcode < OPCODES else OPCODES - 1] += 1
    if unlikely(status != SUCCESS):
        sq.counters.errors += 1
        sq.cq.urgent = True
        push_event(sq.engine, EVENT_IO_ERROR, sq.qid, cid, status | sq.cq.phase << PHASE_SHIFT,
                   nsid, lba)
    sq.inflight -= 1
    sq.cq.reserved -= 1
    post_completion(sq.cq, 0, sq.head, sq.qid, cid, status)
    want_interrupt(thread, sq.cq)
