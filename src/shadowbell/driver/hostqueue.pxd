from shadowbell.driver.hostring cimport Cq, Sq


cdef class CompletionRing:
    cdef Cq cq
    cdef Sq *senders[256]          # by queue identifier: who may complete here
    cdef readonly object rings     # {qid: SubmissionRing}, keeps them alive
    cdef readonly int qid
    cdef readonly int busy         # lanes of a load loop that run here
    cdef object owner              # that loop


cdef class SubmissionRing:
    cdef Sq sq
    cdef readonly CompletionRing completions
    cdef readonly int qid


cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int POLLIN
    int poll(pollfd *, unsigned long, int)

cdef int wait_irq(Cq *cq, int timeout_ms) noexcept nogil
cdef void drain_irq(Cq *cq) noexcept nogil
