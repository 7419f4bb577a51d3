"""A controller's queues: made, freed, and where they and their doorbells lie in memory.

All of it runs while the engine is paused.
"""

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from posix.unistd cimport close

from shadowbell.dataplane.dma cimport Memory, translate
from shadowbell.dataplane.doorbells cimport POSTED, behind, ignore_head
from shadowbell.dataplane.includes.cpu cimport load32, store32
from shadowbell.dataplane.layout cimport (
    CQE_SIZE,
    DMA_READ_ACCESS,
    DMA_WRITE_ACCESS,
    MAX_ENTRIES,
    MAX_VECTORS,
    PAGE_SIZE,
    SQE_SIZE,
    CompletionQueue,
    SubmissionQueue,
)
from shadowbell.dataplane.lines cimport take_lines
from shadowbell.dataplane.live cimport count_live
from shadowbell.dataplane.throttle cimport free_held, new_held

from shadowbell.dataplane.dma import DmaError


cdef extern from "<sys/eventfd.h>":
    enum:
        EFD_CLOEXEC
    int eventfd(unsigned initial, int flags)


cdef void withdraw_ioeventfd(SubmissionQueue *sq) noexcept nogil:
    """The register is authoritative again; no ring reads the descriptor any more."""
    if sq.ioeventfd >= 0:
        close(sq.ioeventfd)
        sq.ioeventfd = -1


cdef class Binding:
    """See engine.pyi for what reaches Python."""

    def __cinit__(self, Memory memory not None):
        self.memory = memory
        self.places = {}

    cdef CompletionQueue *new_cq(self, int qid, uint64_t iova, uint32_t entries,
                                 int vector) except NULL:
        cdef CompletionQueue *cq
        if not 0 <= qid <= self.state.max_queues or not 2 <= entries <= MAX_ENTRIES:
            raise ValueError("no such completion queue can be")
        if self.state.cqs[qid] != NULL:
            raise ValueError("the completion queue exists")
        cq = <CompletionQueue *> take_lines(1, sizeof(CompletionQueue))
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
        sq = <SubmissionQueue *> take_lines(1, sizeof(SubmissionQueue))
        if sq == NULL:
            raise MemoryError
        if qid:
            try:
                sq.held = new_held()
            except OSError:
                free(sq)
                raise
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
            withdraw_ioeventfd(self.state.sqs[qid])
            free_held(self.state.sqs[qid].held)
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

    cdef int set_shadow(self, uint64_t shadow, uint64_t eventidx) except -1:
        for iova in (shadow, eventidx):
            if self.host_page(iova) == NULL:
                raise DmaError(f"no page is mapped at {iova:#x}")
        self.shadow = None
        self.rebind()  # what an earlier buffer said goes into the registers
        self.shadow = (shadow, eventidx)
        self.fill_shadow()
        self.rebind()
        return 0

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
            withdraw_ioeventfd(sq)

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

    cdef list offer_ioeventfds(self):
        cdef SubmissionQueue *sq
        offered = []
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
