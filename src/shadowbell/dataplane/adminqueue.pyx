"""The admin queue pair, which the control plane serves itself."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from collections import deque

from shadowbell.dataplane.access cimport Access
from shadowbell.dataplane.doorbells cimport distance, ignore_head, read_head, read_tail
from shadowbell.dataplane.events cimport push_event, signal_fd
from shadowbell.dataplane.includes.cpu cimport fence, store32
from shadowbell.dataplane.layout cimport (
    EVENT_INVALID_VALUE,
    OPCODES,
    SQE_SIZE,
    CompletionQueue,
    SubmissionQueue,
)
from shadowbell.dataplane.queues cimport post_completion


cdef class AdminQueue:
    """See engine.pyi for the methods."""

    def __cinit__(self, Access access not None):
        self.access = access
        self.pending = deque()

    cdef object fetch(self):
        cdef SubmissionQueue *sq = self.state.sqs[0]
        cdef uint32_t tail
        cdef uint8_t sqe[SQE_SIZE]
        self.post_pending()
        if sq == NULL or sq.dead or not sq.reachable or not sq.cq.reachable:
            return None
        if self.pending:
            return None  # the host takes its completions first
        tail = read_tail(sq)
        if tail == sq.head and sq.tail_eventidx != NULL:
            # Always armed: admin commands are rare, and who shadows this queue must ring each time.
            store32(sq.tail_eventidx, sq.head)
            fence()
            tail = read_tail(sq)
        if tail == sq.head:
            return None
        if tail >= sq.entries:
            sq.dead = True
            push_event(self.state, EVENT_INVALID_VALUE, 0, 0, 0, 0, 0)
            return None
        memcpy(sqe, sq.pages[sq.head >> 6] + ((sq.head & 63) << 6), SQE_SIZE)
        sq.head = 0 if sq.head + 1 == sq.entries else sq.head + 1
        sq.counters.commands[OPCODES - 1] += 1
        self.access.tell_bus_error()
        return (<const char *> sqe)[:SQE_SIZE]

    cdef int complete(self, uint16_t cid, uint32_t status, uint32_t dw0) except -1:
        self.pending.append((cid, status, dw0))
        return self.post_pending()

    cdef int post_pending(self) except -1:
        cdef SubmissionQueue *sq = self.state.sqs[0]
        cdef CompletionQueue *cq = self.state.cqs[0]
        cdef uint32_t head
        cdef bint posted = False
        while self.pending and cq != NULL and cq.reachable:
            head = read_head(cq)
            if (head >= cq.entries or distance(cq.head, head, cq.entries)
                    > distance(cq.head, cq.tail, cq.entries)):
                if not cq.stalled:
                    push_event(self.state, EVENT_INVALID_VALUE, 0, 1, 0, 0, 0)
                cq.stalled = True
                break
            cq.head = head
            if distance(head, cq.tail, cq.entries) == cq.entries - 1:
                cq.stalled = True
                if cq.head_eventidx != NULL:
                    store32(cq.head_eventidx, head)
                    fence()
                if read_head(cq) == head:
                    break
                continue
            cq.stalled = False
            ignore_head(cq)
            cid, status, dw0 = self.pending.popleft()
            post_completion(cq, dw0, sq.head, 0, cid, status)
            posted = True
        if posted:
            self.access.tell_bus_error()
        if posted and self.state.vectors[0] >= 0:
            self.state.counters[0].interrupts += 1
            signal_fd(self.state.vectors[0])
        return 0
