from libc.stdint cimport uint32_t, uint64_t

from shadowbell.dataplane.binding cimport Binding
from shadowbell.dataplane.iothread cimport IOThread
from shadowbell.dataplane.layout cimport CompletionQueue, EngineState
from shadowbell.dataplane.pausing cimport Pausing

cdef class QueueSet:
    cdef EngineState *state
    cdef Binding binding
    cdef Pausing pausing
    cdef list threads
    cdef dict placement        # cqid: the IOThread it begins on; None: the IOThreads in turn
    cdef int home              # index of the thread that reads the client's socket
    cdef tuple coalescing      # of set_coalescing()
    cdef int open_admin(self, uint64_t asq, uint32_t asq_entries, uint64_t acq,
                        uint32_t acq_entries) except -1
    cdef int create_cq(self, int qid, uint64_t iova, uint32_t entries, vector) except -1
    cdef int create_sq(self, int qid, uint64_t iova, uint32_t entries, int cqid) except -1
    cdef int delete_sq(self, int qid) except -1
    cdef int delete_cq(self, int qid) except -1
    cdef int drop_all(self) except -1
    cdef bint move(self, int cqid, int index, int patience_ms) except -1
    cdef IOThread find_thread(self, int index)
    cdef list loads(self)
    cdef int set_coalescing(self, uint32_t entries, uint32_t microseconds, exempt) except -1
    cdef int coalesce(self, CompletionQueue *cq) except -1
