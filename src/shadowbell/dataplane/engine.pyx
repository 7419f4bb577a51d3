"""The I/O half of one controller: memory, doorbells, queue pairs, vectors and the client's socket.

The control plane owns an engine and calls all of its methods from one thread. Whatever an IOThread
may be reading is changed under ``paused()`` only: every IOThread has then let go of the engine's
queues, and none of its commands is under way.
"""

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.unistd cimport close
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

import contextlib
import fcntl
import itertools
import os
from collections import deque

from shadowbell.block.backend cimport Backend
from shadowbell.dataplane.channel cimport (
    PARSED_BROKEN,
    PARSED_MESSAGE,
    doorbell_written,
    receive,
    take_doorbells,
)
from shadowbell.dataplane.dma cimport Memory, bus_error_count, translate
from shadowbell.dataplane.doorbells cimport (
    POSTED,
    behind,
    distance,
    ignore_head,
    read_head,
    read_tail,
)
from shadowbell.dataplane.events cimport (
    lock_events,
    push_event,
    signal_fd,
    unlock_events,
)
from shadowbell.dataplane.includes.cpu cimport fence, load32, store32
from shadowbell.dataplane.includes.uring cimport iovec
from shadowbell.dataplane.iothread cimport IOThread
from shadowbell.dataplane.layout cimport (
    CQ_PAGES,
    CQE_SIZE,
    DMA_READ_ACCESS,
    DMA_WRITE_ACCESS,
    EVENT_BUS_ERROR,
    EVENT_INVALID_VALUE,
    EVENT_RING,
    HISTOGRAM_BUCKETS,
    MAX_ENTRIES,
    MAX_IOVECS,
    MAX_NAMESPACES,
    MAX_QUEUES,
    MAX_TRANSFER,
    MAX_VECTORS,
    OP_CHANNEL_CLOSE,
    OP_CHANNEL_OPEN,
    OP_PAUSE,
    OP_RESUME,
    OPCODES,
    OWNER_CONTROL,
    OWNER_THREAD,
    PAGE_SIZE,
    SQ_PAGES,
    SQE_SIZE,
    Channel,
    CompletionQueue,
    Counters,
    EngineState,
    EventRecord,
    NamespaceEntry,
    SubmissionQueue,
)
from shadowbell.dataplane.live cimport count_live
from shadowbell.dataplane.queues cimport post_completion
from shadowbell.dataplane.status cimport INVALID_FIELD_IN_COMMAND
from shadowbell.dataplane.transfer cimport build_iov

from shadowbell.dataplane.dma import DmaError
from shadowbell.dataplane.ledger import QueueLedger, bucket_ns, name_commands
from shadowbell.dataplane.notices import Event, TransferError


cdef extern from "<sys/eventfd.h>":
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK
    int eventfd(unsigned initial, int flags)

cdef enum:
    DOORBELL_BASE = 0x1000     # in BAR0, and so in the file that a client maps

EVENT_KINDS = ("invalid-doorbell-register", "invalid-doorbell-value", "io-error", "bus-error")

# Engines take the IOThreads in turn, so that many controllers spread over few threads.
_turn = itertools.count()


cdef class Engine:
    """See the module and, for its methods, engine.pyi."""

    cdef EngineState *state
    cdef Memory memory
    cdef list threads
    cdef int home                   # index of the thread that reads the client's socket
    cdef int pauses
    cdef dict backends              # nsid: Backend
    cdef object shadow              # (shadow iova, eventidx iova) or None
    cdef object admin_pending       # completions that wait for room in the admin CQ
    cdef dict places                # (qid, is_cq): iova of the queue
    cdef uint32_t bus_errors_seen
    cdef readonly int notify_fd
    cdef readonly int doorbell_fd

    def __cinit__(self, iothreads, *, int max_queues, bint mapped):
        self.notify_fd = self.doorbell_fd = -1
        if not 1 <= max_queues < MAX_QUEUES:
            raise ValueError(f"max_queues must be 1 to {MAX_QUEUES - 1}")
        self.threads = list(iothreads)
        self.home = next(_turn) % len(self.threads)
        self.backends = {}
        self.places = {}
        self.admin_pending = deque()
        self.memory = Memory()
        self.state = <EngineState *> calloc(1, sizeof(EngineState))
        if self.state == NULL:
            raise MemoryError
        self.state.counters = <Counters *> calloc(MAX_QUEUES, sizeof(Counters))
        self.notify_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.doorbell_fd = os.memfd_create(
            "shadowbell-doorbells", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.doorbell_fd, DOORBELL_BASE + PAGE_SIZE)
        # The client gets this descriptor: it must not take the page from under us.
        fcntl.fcntl(self.doorbell_fd, fcntl.F_ADD_SEALS,
                    fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        cdef void *page = mmap(
            NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, self.doorbell_fd,
            DOORBELL_BASE)
        if self.state.counters == NULL or self.notify_fd < 0 or page == MAP_FAILED:
            raise OSError(errno, "can't set up an engine")
        self.state.doorbells = <uint32_t *> page
        self.state.table = self.memory.table
        self.state.max_queues = max_queues
        self.state.mapped = mapped
        self.state.notify_fd = self.notify_fd
        for i in range(MAX_VECTORS):
            self.state.vectors[i] = -1
        count_live(b"engines", 1)

    def __dealloc__(self):
        cdef int i
        if self.state != NULL:
            if self.state.doorbells != NULL:
                munmap(self.state.doorbells, PAGE_SIZE)
                count_live(b"engines", -1)
            for i in range(MAX_NAMESPACES):
                free(self.state.namespaces[i])
            free(self.state.counters)
            free(self.state)
        for fd in (self.notify_fd, self.doorbell_fd):
            if fd >= 0:
                os.close(fd)

    def close(self):
        """Give back everything but the object; the IOThreads no longer know it afterwards."""
        self.close_channel()
        self.reset()
        self.dma_unmap_all()
        for vector in range(MAX_VECTORS):
            self.set_vector(vector, None)
        for nsid in list(self.backends):
            self.detach_namespace(nsid)

    # --- letting go of the IOThreads ----------------------------------------------------------

    @contextlib.contextmanager
    def paused(self):
        """Inside, no IOThread touches the engine's queues and no command is under way."""
        cdef IOThread thread
        threads = self.threads if self.serving() else []
        self.pauses += 1
        try:
            if self.pauses == 1:
                for thread in threads:
                    thread.post(OP_PAUSE, self.state)
            yield
        finally:
            self.pauses -= 1
            if self.pauses == 0 and (threads or self.serving()):
                for thread in self.threads:
                    thread.post(OP_RESUME, self.state)

    cdef bint serving(self):
        cdef uint32_t i
        for i in range(self.state.max_queues + 1):
            if self.state.sqs[i] != NULL and self.state.sqs[i].thread != NULL:
                return True
        return self.state.channel != NULL and self.state.channel.owner == OWNER_THREAD

    # --- the client's socket --------------------------------------------------------------------

    def clear_notify(self):
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.notify_fd)

    def open_channel(self, int fd):
        cdef Channel *channel
        cdef IOThread thread = self.threads[self.home]
        if self.state.channel != NULL:
            raise RuntimeError("the engine has a client already")
        channel = <Channel *> calloc(1, sizeof(Channel))
        if channel == NULL:
            raise MemoryError
        channel.fd = fd
        channel.owner = OWNER_THREAD
        channel.engine = self.state
        channel.thread = &thread.state
        self.state.channel = channel
        try:
            thread.post(OP_CHANNEL_OPEN, self.state)
        except BaseException:
            self.state.channel = NULL
            free(channel)
            raise
        count_live(b"channels", 1)

    def next_message(self):
        cdef Channel *channel = self.state.channel
        cdef uint32_t size = 0
        cdef int parsed
        if channel == NULL or load32(&channel.owner) != OWNER_CONTROL:
            return None
        while True:
            parsed = take_doorbells(NULL, channel, &size)
            if parsed == PARSED_BROKEN:
                raise ValueError("the vfio-user stream holds no message where one must begin")
            if parsed == PARSED_MESSAGE:
                return self.take_message(channel, size)
            if channel.error == 0 and receive(channel) == 0:
                return None
            if channel.error < 0:
                raise EOFError("the client closed its socket")
            if channel.error:
                raise EOFError(f"the client's socket failed: {os.strerror(channel.error)}")

    cdef tuple take_message(self, Channel *channel, uint32_t size):
        cdef uint32_t end = channel.start + size
        fds = []
        if channel.fd_count and channel.start < channel.fd_mark <= end:
            fds = [channel.fds[i] for i in range(channel.fd_count)]
            channel.fd_count = 0
        message = (<const char *> channel.buffer)[channel.start:end]
        channel.start = end
        return message, fds

    def resume_channel(self):
        cdef Channel *channel = self.state.channel
        cdef IOThread thread = self.threads[self.home]
        if channel != NULL and load32(&channel.owner) == OWNER_CONTROL:
            store32(&channel.waiting, 0)
            store32(&channel.owner, OWNER_THREAD)
            thread.post(OP_CHANNEL_OPEN, self.state)

    def close_channel(self):
        cdef Channel *channel = self.state.channel
        cdef IOThread thread = self.threads[self.home]
        if channel == NULL:
            return
        thread.post(OP_CHANNEL_CLOSE, self.state)
        self.state.channel = NULL
        for i in range(channel.fd_count):
            os.close(channel.fds[i])
        free(channel)
        count_live(b"channels", -1)

    def doorbell_write(self, uint64_t offset, data):
        if DOORBELL_BASE <= offset < DOORBELL_BASE + PAGE_SIZE and not offset & 3:
            for i in range(0, len(data) - len(data) % 4, 4):
                if offset + i < DOORBELL_BASE + PAGE_SIZE:
                    doorbell_written(NULL, self.state, offset + i - DOORBELL_BASE,
                                     int.from_bytes(data[i : i + 4], "little"))

    # --- memory -----------------------------------------------------------------------------------

    def dma_map(self, uint64_t iova, uint64_t length, fd, uint64_t offset, uint32_t prot):
        with self.paused():
            try:
                self.memory.map(iova, length, fd, offset, prot)
            finally:
                self.rebind()

    def dma_unmap(self, uint64_t iova, uint64_t length):
        with self.paused():
            try:
                self.memory.unmap(iova, length)
            finally:
                self.rebind()

    def dma_unmap_all(self):
        with self.paused():
            self.memory.clear()
            self.rebind()

    def dma_read(self, uint64_t iova, uint64_t length):
        data = self.memory.read(iova, length)
        self.tell_bus_error()
        return data

    def dma_write(self, uint64_t iova, data):
        self.memory.write(iova, data)
        self.tell_bus_error()

    cdef void tell_bus_error(self):
        """The control plane met shrunken memory: no IOThread may notice it for us."""
        cdef uint32_t count = load32(bus_error_count)
        if count != self.bus_errors_seen:
            self.bus_errors_seen = count
            if self.memory.bus_error():
                push_event(self.state, EVENT_BUS_ERROR, 0, 0, 0, 0, 0)

    def write_data(self, sqe, data):
        cdef const uint8_t[::1] view = data
        self.transfer(sqe, <uint8_t *> &view[0] if len(data) else NULL, len(data), True)

    def read_data(self, sqe, uint64_t length):
        data = bytearray(length)
        cdef uint8_t[::1] view = data
        self.transfer(sqe, &view[0] if length else NULL, length, False)
        return bytes(data)

    cdef int transfer(self, const uint8_t[::1] sqe, uint8_t *data, uint64_t length,
                      bint to_host) except -1:
        cdef iovec iov[MAX_IOVECS]
        cdef uint8_t page[PAGE_SIZE]
        cdef uint32_t hint = 0, count = 0, i
        cdef int status
        if length == 0:
            return 0
        if length > MAX_TRANSFER or sqe.shape[0] != SQE_SIZE:
            raise TransferError(INVALID_FIELD_IN_COMMAND)
        status = build_iov(self.memory.table, &hint, &sqe[0], length,
                           DMA_WRITE_ACCESS if to_host else DMA_READ_ACCESS, iov, &count, page)
        if status:
            raise TransferError(status)
        for i in range(count):
            if to_host:
                memcpy(iov[i].iov_base, data, iov[i].iov_len)
            else:
                memcpy(data, iov[i].iov_base, iov[i].iov_len)
            data += iov[i].iov_len
        self.tell_bus_error()
        return 0

    # --- queues -----------------------------------------------------------------------------------

    def open_admin(self, uint64_t asq, uint32_t asq_entries, uint64_t acq, uint32_t acq_entries):
        cdef IOThread thread = self.threads[self.home]
        cdef CompletionQueue *cq
        with self.paused():
            cq = self.new_cq(0, acq, acq_entries, 0)
            self.new_sq(0, asq, asq_entries, cq)
            if self.state.mapped:
                self.state.sqs[0].thread = &thread.state
            self.state.admin_seen_tail = 0
            self.rebind()

    def fetch_admin(self):
        cdef SubmissionQueue *sq = self.state.sqs[0]
        cdef uint32_t tail
        cdef uint8_t sqe[SQE_SIZE]
        self.post_pending()
        if sq == NULL or sq.dead or not sq.reachable or not sq.cq.reachable:
            return None
        if self.admin_pending:
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
        self.tell_bus_error()
        return (<const char *> sqe)[:SQE_SIZE]

    def complete_admin(self, uint16_t cid, uint32_t status, uint32_t dw0=0):
        self.admin_pending.append((cid, status, dw0))
        self.post_pending()

    cdef int post_pending(self) except -1:
        cdef SubmissionQueue *sq = self.state.sqs[0]
        cdef CompletionQueue *cq = self.state.cqs[0]
        cdef uint32_t head
        cdef bint posted = False
        while self.admin_pending and cq != NULL and cq.reachable:
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
            cid, status, dw0 = self.admin_pending.popleft()
            post_completion(cq, dw0, sq.head, 0, cid, status)
            posted = True
        if posted:
            self.tell_bus_error()
        if posted and self.state.vectors[0] >= 0:
            self.state.counters[0].interrupts += 1
            signal_fd(self.state.vectors[0])
        return 0

    def create_cq(self, int qid, uint64_t iova, uint32_t entries, vector):
        cdef IOThread thread = self.threads[(self.home + qid - 1) % len(self.threads)]
        with self.paused():
            self.new_cq(qid, iova, entries, -1 if vector is None else vector)
            self.state.cqs[qid].thread = &thread.state
            self.rebind()

    def create_sq(self, int qid, uint64_t iova, uint32_t entries, int cqid):
        if (cqid, True) not in self.places:
            raise ValueError(f"no completion queue {cqid}")
        with self.paused():
            self.new_sq(qid, iova, entries, self.state.cqs[cqid])
            self.state.sqs[qid].thread = self.state.cqs[cqid].thread
            self.rebind()

    def delete_sq(self, int qid):
        if (qid, False) not in self.places:
            raise ValueError(f"no submission queue {qid}")
        with self.paused():
            self.drop_sq(qid)

    def delete_cq(self, int qid):
        cdef uint32_t i
        if (qid, True) not in self.places:
            raise ValueError(f"no completion queue {qid}")
        for i in range(self.state.max_queues + 1):
            if self.state.sqs[i] != NULL and self.state.sqs[i].cq == self.state.cqs[qid]:
                raise ValueError(f"submission queue {i} uses completion queue {qid}")
        with self.paused():
            self.drop_cq(qid)

    def reset(self):
        with self.paused():
            for qid in range(self.state.max_queues + 1):
                self.drop_sq(qid)
                self.drop_cq(qid)
            self.shadow = None
            self.admin_pending.clear()
            memset(self.state.doorbells, 0, PAGE_SIZE)

    cdef CompletionQueue *new_cq(self, int qid, uint64_t iova, uint32_t entries,
                                 int vector) except NULL:
        cdef CompletionQueue *cq
        if not 0 <= qid <= self.state.max_queues or not 2 <= entries <= MAX_ENTRIES:
            raise ValueError("no such completion queue can be")
        if self.state.cqs[qid] != NULL:
            raise ValueError("the completion queue exists")
        cq = <CompletionQueue *> calloc(1, sizeof(CompletionQueue))
        if cq == NULL:
            raise MemoryError
        cq.qid = qid
        cq.entries = entries
        cq.phase = 1
        cq.vector = vector if vector < MAX_VECTORS else -1
        cq.engine = self.state
        cq.pages = cq.page_storage
        self.state.cqs[qid] = cq
        self.places[qid, True] = iova
        store32(&self.state.doorbells[2 * qid + 1], 0)
        self.clear_slot(2 * qid + 1)
        count_live(b"queues", 1)
        return cq

    cdef SubmissionQueue *new_sq(self, int qid, uint64_t iova, uint32_t entries,
                                 CompletionQueue *cq) except NULL:
        cdef SubmissionQueue *sq
        if not 0 <= qid <= self.state.max_queues or not 2 <= entries <= MAX_ENTRIES:
            raise ValueError("no such submission queue can be")
        if self.state.sqs[qid] != NULL:
            raise ValueError("the submission queue exists")
        sq = <SubmissionQueue *> calloc(1, sizeof(SubmissionQueue))
        if sq == NULL:
            raise MemoryError
        sq.qid = qid
        sq.entries = entries
        sq.cq = cq
        sq.engine = self.state
        sq.counters = &self.state.counters[qid]
        sq.pages = sq.page_storage
        sq.ioeventfd = -1
        self.state.sqs[qid] = sq
        self.places[qid, False] = iova
        store32(&self.state.doorbells[2 * qid], 0)
        self.clear_slot(2 * qid)
        count_live(b"queues", 1)
        return sq

    cdef void drop_sq(self, int qid):
        if self.state.sqs[qid] != NULL:
            self.withdraw_ioeventfd(self.state.sqs[qid])
            free(self.state.sqs[qid])
            self.state.sqs[qid] = NULL
            del self.places[qid, False]
            count_live(b"queues", -1)

    cdef void drop_cq(self, int qid):
        if self.state.cqs[qid] != NULL:
            free(self.state.cqs[qid])
            self.state.cqs[qid] = NULL
            del self.places[qid, True]
            count_live(b"queues", -1)

    # --- where queues and doorbells lie in memory ---------------------------------------------------

    def set_shadow(self, uint64_t shadow, uint64_t eventidx):
        with self.paused():
            for iova in (shadow, eventidx):
                if self.host_page(iova) == NULL:
                    raise DmaError(f"no page is mapped at {iova:#x}")
            self.shadow = None
            self.rebind()  # what an earlier buffer said goes into the registers
            self.shadow = (shadow, eventidx)
            self.fill_shadow()
            self.rebind()

    cdef uint8_t *host_page(self, uint64_t iova):
        cdef uint32_t hint = 0
        return translate(self.memory.table, &hint, iova, PAGE_SIZE,
                         DMA_READ_ACCESS | DMA_WRITE_ACCESS)

    cdef void fill_shadow(self):
        """Queues that exist bring their current values; EventIdx begins out of reach."""
        cdef uint32_t *shadow = <uint32_t *> self.host_page(self.shadow[0])
        cdef uint32_t *eventidx = <uint32_t *> self.host_page(self.shadow[1])
        cdef uint32_t qid
        for qid in range(self.state.max_queues + 1):
            if self.state.sqs[qid] != NULL:
                store32(&shadow[2 * qid], load32(&self.state.doorbells[2 * qid]))
                self.state.sqs[qid].host_stores = False
                store32(&eventidx[2 * qid], self.state.sqs[qid].head)
            if self.state.cqs[qid] != NULL:
                store32(&shadow[2 * qid + 1], load32(&self.state.doorbells[2 * qid + 1]))
                self.state.cqs[qid].host_stores = False

    cdef void clear_slot(self, uint32_t slot):
        """A new queue starts at 0, whatever the buffer held: old Linux leaves stale values."""
        cdef uint8_t *page
        if self.shadow is not None:
            for iova in self.shadow:
                page = self.host_page(iova)
                if page != NULL:
                    store32(page + 4 * slot, 0)

    cdef void rebind(self):
        """Resolve every queue's pages and doorbell words anew, after maps or queues changed."""
        cdef uint32_t *shadow = NULL
        cdef uint32_t *eventidx = NULL
        cdef uint32_t qid
        self.state.table = self.memory.table
        if self.shadow is not None:
            shadow = <uint32_t *> self.host_page(self.shadow[0])
            eventidx = <uint32_t *> self.host_page(self.shadow[1])
            if shadow == NULL or eventidx == NULL:
                # Away for now: the registers serve until the client maps the pages again.
                shadow = eventidx = NULL
        for qid in range(self.state.max_queues + 1):
            if self.state.cqs[qid] != NULL:
                self.bind_cq(qid, shadow, eventidx)
        for qid in range(self.state.max_queues + 1):
            if self.state.sqs[qid] != NULL:
                self.bind_sq(qid, shadow, eventidx)

    cdef void bind_cq(self, uint32_t qid, uint32_t *shadow, uint32_t *eventidx):
        cdef CompletionQueue *cq = self.state.cqs[qid]
        cdef uint32_t slot = 2 * qid + 1
        cdef uint32_t *word = &shadow[slot] if shadow != NULL else &self.state.doorbells[slot]
        cq.reachable = self.resolve(self.places[qid, True], cq.entries * CQE_SIZE, cq.pages,
                                    DMA_WRITE_ACCESS)
        if cq.head_eventidx != NULL and shadow == NULL:
            store32(word, cq.posted & ~(<uint32_t> POSTED) if cq.posted else cq.head)
            cq.posted = 0
        if cq.head_eventidx == NULL:  # from one page to another, what was learned stays true
            cq.stored = load32(word)
        cq.head_doorbell = word
        cq.head_eventidx = &eventidx[slot] if eventidx != NULL else NULL
        if not cq.stalled:
            ignore_head(cq)

    cdef void bind_sq(self, uint32_t qid, uint32_t *shadow, uint32_t *eventidx):
        cdef SubmissionQueue *sq = self.state.sqs[qid]
        cdef uint32_t slot = 2 * qid
        cdef uint32_t *word = &shadow[slot] if shadow != NULL else &self.state.doorbells[slot]
        sq.reachable = self.resolve(self.places[qid, False], sq.entries * SQE_SIZE, sq.pages,
                                    DMA_READ_ACCESS) and sq.cq.reachable
        if sq.tail_eventidx != NULL and shadow == NULL:
            store32(word, sq.posted & ~(<uint32_t> POSTED) if sq.posted else sq.head)
            sq.posted = 0
        if sq.tail_eventidx == NULL:
            sq.stored = load32(word)
        sq.tail_doorbell = word
        sq.tail_eventidx = &eventidx[slot] if eventidx != NULL else NULL
        sq.last_eventidx = behind(sq.head, sq.entries)
        if self.shadow is None:  # not merely away: the client still has the descriptor
            self.withdraw_ioeventfd(sq)

    def region_io_fds(self):
        cdef SubmissionQueue *sq
        offered = []
        with self.paused():
            for qid in range(1, self.state.max_queues + 1):
                sq = self.state.sqs[qid]
                if sq == NULL or sq.tail_eventidx == NULL:
                    continue
                if sq.ioeventfd < 0:
                    sq.ioeventfd = eventfd(0, EFD_CLOEXEC)
                    if sq.ioeventfd < 0:
                        raise OSError(errno, "can't make an eventfd")
                offered.append((DOORBELL_BASE + 8 * qid, 4, sq.ioeventfd))
        return offered

    cdef void withdraw_ioeventfd(self, SubmissionQueue *sq):
        """The register is authoritative again; no ring reads the descriptor any more."""
        if sq.ioeventfd >= 0:
            close(sq.ioeventfd)
            sq.ioeventfd = -1

    cdef bint resolve(self, uint64_t iova, uint64_t size, uint8_t **pages, uint32_t access):
        """Find a queue's pages; False when one isn't mapped for the access now."""
        cdef uint32_t hint = 0
        cdef uint64_t i, count = (size + PAGE_SIZE - 1) // PAGE_SIZE
        for i in range(count):
            pages[i] = translate(self.memory.table, &hint, iova + i * PAGE_SIZE,
                                 min(<uint64_t> PAGE_SIZE, size - i * PAGE_SIZE), access)
            if pages[i] == NULL:
                return False
        return True

    # --- vectors and namespaces -----------------------------------------------------------------------

    def set_vector(self, int vector, fd):
        cdef CompletionQueue *cq
        cdef int old, new = -1 if fd is None else fd
        if not 0 <= vector < MAX_VECTORS:
            raise ValueError(f"no vector {vector}")
        if self.state.vectors[vector] == new == -1:
            return
        if new >= 0:
            # A client that fills its eventfd must not hold up the IOThread that writes it.
            os.set_blocking(new, False)
        with self.paused():
            old = self.state.vectors[vector]
            self.state.vectors[vector] = new
        if old >= 0:
            os.close(old)
        if new >= 0:
            for qid in range(self.state.max_queues + 1):
                cq = self.state.cqs[qid]
                if cq != NULL and cq.vector == vector and cq.tail != load32(cq.head_doorbell):
                    signal_fd(new)
                    break

    def signal_vector(self, int vector):
        if 0 <= vector < MAX_VECTORS and self.state.vectors[vector] >= 0:
            signal_fd(self.state.vectors[vector])

    def set_write_cache(self, bint enabled):
        with self.paused():
            self.state.always_fua = not enabled

    def attach_namespace(self, int nsid, Backend backend not None, uint32_t lba_shift,
                         bint read_only):
        cdef NamespaceEntry *entry
        if not 1 <= nsid <= MAX_NAMESPACES or nsid in self.backends:
            raise ValueError(f"namespace {nsid} can't be attached")
        entry = <NamespaceEntry *> calloc(1, sizeof(NamespaceEntry))
        if entry == NULL:
            raise MemoryError
        entry.backend = &backend.state
        entry.lba_shift = lba_shift
        entry.blocks = backend.state.size >> lba_shift
        entry.read_only = read_only
        with self.paused():
            self.state.namespaces[nsid - 1] = entry
        self.backends[nsid] = backend

    def detach_namespace(self, int nsid):
        if nsid not in self.backends:
            raise ValueError(f"namespace {nsid} isn't attached")
        with self.paused():
            free(self.state.namespaces[nsid - 1])
            self.state.namespaces[nsid - 1] = NULL
        del self.backends[nsid]

    def flush_all(self):
        with self.paused():
            for backend in self.backends.values():
                backend.flush()

    # --- what happened ----------------------------------------------------------------------------------

    def take_events(self):
        cdef EventRecord records[EVENT_RING]
        cdef EventRecord *record
        cdef uint32_t i, count
        # Copied first: nothing of Python's runs while an IOThread may wait for the lock.
        lock_events(self.state)
        count = self.state.event_count
        memcpy(records, self.state.events, count * sizeof(EventRecord))
        self.state.event_count = 0
        unlock_events(self.state)
        events = []
        for i in range(count):
            record = &records[i]
            if record.kind != EVENT_BUS_ERROR or self.memory.bus_error():
                events.append(Event(EVENT_KINDS[record.kind], record.qid, record.cid,
                                    record.status, record.nsid, record.lba))
        return events

    def ledger(self):
        return [
            self.queue_ledger(qid)
            for qid in range(self.state.max_queues + 1)
            if self.state.sqs[qid] != NULL or any(self.state.counters[qid].commands)
        ]

    cdef object queue_ledger(self, uint32_t qid):
        cdef Counters *c = &self.state.counters[qid]
        return QueueLedger(
            qid=qid,
            doorbells=c.doorbells,
            ioeventfd_wakeups=c.ioeventfd_wakeups,
            shadow_finds=c.shadow_finds,
            eventidx_stores=c.eventidx_stores,
            arms=c.arms,
            arms_lost=c.arms_lost,
            interrupts=c.interrupts,
            interrupts_suppressed=c.interrupts_suppressed,
            commands={"admin": c.commands[OPCODES - 1]} if qid == 0
            else name_commands(c.commands),
            bytes_read=c.bytes_read,
            bytes_written=c.bytes_written,
            errors=c.errors,
            media_errors=c.media_errors,
            latency=tuple(
                (bucket_ns(i), c.latency[i]) for i in range(HISTOGRAM_BUCKETS) if c.latency[i]
            ),
        )
