"""I/O commands (NVM Command Set 1.0, 3.2): from a copied SQE to its completion.

Most commands are one request to the block back end. The others take steps: Compare reads and then
compares, Verify reads piece by piece, Dataset Management discards range by range, Flush of all
namespaces flushes one after the other.

Not implemented: Write Uncorrectable, Copy, reservations, fused operations, metadata.
"""

from libc.errno cimport EOPNOTSUPP
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp

from shadowbell.block.backend cimport (
    BLOCK_DONE,
    BLOCK_PENDING,
    BOUNCE_SIZE,
    BlockContext,
    BlockRequest,
    bounce_give,
    bounce_take,
)
from shadowbell.dataplane.decoding cimport HELD, READ, WRITE, Range, decode
from shadowbell.dataplane.events cimport push_event
from shadowbell.dataplane.faults cimport is_media_error, status_of_errno
from shadowbell.dataplane.includes.cpu cimport likely, unlikely
from shadowbell.dataplane.interrupts cimport want_interrupt
from shadowbell.dataplane.layout cimport (
    EVENT_IO_ERROR,
    PHASE_SHIFT,
    SQE_SIZE,
    MAX_IOVECS,
    MAX_NAMESPACES,
    OPCODES,
    STEP_BLOCK,
    STEP_COMPARE,
    STEP_FLUSH_ALL,
    STEP_RANGES,
    STEP_VERIFY,
    EngineState,
    Request,
    SubmissionQueue,
    ThreadState,
)
from shadowbell.dataplane.queues cimport latency_bucket, post_completion, publish, ticks_to_ns
from shadowbell.dataplane.status cimport (
    COMPARE_FAILURE,
    DATA_TRANSFER_ERROR,
    DO_NOT_RETRY,
    INVALID_FIELD_IN_COMMAND,
    SUCCESS,
)
from shadowbell.dataplane.throttle cimport take_held

cdef enum:
    HELD_BATCH = 64            # held commands that are started in a round
    GATHERED_BYTES = 8192      # no completion waits for a longer copy, nor for other commands


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
