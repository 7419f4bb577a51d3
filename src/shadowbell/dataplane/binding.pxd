from libc.stdint cimport uint8_t, uint32_t, uint64_t

from shadowbell.dataplane.dma cimport Memory
from shadowbell.dataplane.layout cimport CompletionQueue, EngineState, SubmissionQueue

cdef enum:
    DOORBELL_BASE = 0x1000     # in BAR0, and so in the file that a client maps

cdef void withdraw_ioeventfd(SubmissionQueue *sq) noexcept nogil

cdef class Binding:
    cdef EngineState *state
    cdef Memory memory
    cdef dict places           # (qid, is_cq): iova of the queue
    cdef object shadow         # (shadow iova, eventidx iova) or None
    cdef CompletionQueue *new_cq(self, int qid, uint64_t iova, uint32_t entries,
                                 int vector) except NULL
    cdef SubmissionQueue *new_sq(self, int qid, uint64_t iova, uint32_t entries,
                                 CompletionQueue *cq) except NULL
    cdef void drop_sq(self, int qid)
    cdef void drop_cq(self, int qid)
    cdef int set_shadow(self, uint64_t shadow, uint64_t eventidx) except -1
    cdef uint8_t *host_page(self, uint64_t iova)
    cdef void fill_shadow(self)
    cdef void clear_slot(self, uint32_t slot)
    cdef void rebind(self)
    cdef void bind_cq(self, uint32_t qid, uint32_t *shadow, uint32_t *eventidx)
    cdef void bind_sq(self, uint32_t qid, uint32_t *shadow, uint32_t *eventidx)
    cdef bint resolve(self, uint64_t iova, uint64_t size, uint8_t **pages, uint32_t access)
    cdef list offer_ioeventfds(self)
