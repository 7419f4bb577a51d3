"""The life of a controller's queues: made, placed on an IOThread, moved to another, deleted."""

from libc.stdint cimport uint32_t, uint64_t

import itertools

from shadowbell.dataplane.accounts cimport work_done
from shadowbell.dataplane.binding cimport Binding
from shadowbell.dataplane.iothread cimport IOThread
from shadowbell.dataplane.layout cimport OP_ADOPT, OP_RELEASE, CompletionQueue, EngineState
from shadowbell.dataplane.pacing cimport in_ticks
from shadowbell.dataplane.pausing cimport Pausing

# Engines take the IOThreads in turn, so that many controllers spread over few threads.
_turn = itertools.count()


cdef class QueueSet:
    """See engine.pyi for the methods."""

    def __cinit__(self, list threads not None, placement, int max_queues):
        self.threads = threads
        if placement is None:
            self.home = next(_turn) % len(self.threads)
        else:
            self.placement = {cqid: self.find_thread(placement[cqid - 1])
                              for cqid in range(1, max_queues + 1)}
            self.home = self.threads.index(self.placement[1])
        self.coalescing = (1, 0, ())

    cdef int open_admin(self, uint64_t asq, uint32_t asq_entries, uint64_t acq,
                        uint32_t acq_entries) except -1:
        cdef IOThread thread = self.threads[self.home]
        cdef CompletionQueue *cq
        with self.pausing.paused():
            cq = self.binding.new_cq(0, acq, acq_entries, 0)
            self.binding.new_sq(0, asq, asq_entries, cq)
            if self.state.mapped:
                self.state.sqs[0].thread = &thread.state
            self.state.admin_seen_tail = 0
            self.binding.rebind()
        return 0

    cdef int create_cq(self, int qid, uint64_t iova, uint32_t entries, vector) except -1:
        cdef IOThread thread
        with self.pausing.paused():
            self.binding.new_cq(qid, iova, entries, -1 if vector is None else vector)
            thread = (self.threads[(self.home + qid - 1) % len(self.threads)]
                      if self.placement is None else self.placement[qid])
            self.state.cqs[qid].thread = &thread.state
            self.coalesce(self.state.cqs[qid])
            self.binding.rebind()
        return 0

    cdef int create_sq(self, int qid, uint64_t iova, uint32_t entries, int cqid) except -1:
        if (cqid, True) not in self.binding.places:
            raise ValueError(f"no completion queue {cqid}")
        with self.pausing.paused():
            self.binding.new_sq(qid, iova, entries, self.state.cqs[cqid])
            self.state.sqs[qid].thread = self.state.cqs[cqid].thread
            self.binding.rebind()
        return 0

    cdef int delete_sq(self, int qid) except -1:
        if (qid, False) not in self.binding.places:
            raise ValueError(f"no submission queue {qid}")
        with self.pausing.paused():
            # Nobody waits for what it held back, but its completion queue goes on.
            self.state.sqs[qid].cq.reserved -= self.state.sqs[qid].held.count
            self.binding.drop_sq(qid)
        return 0

    cdef int delete_cq(self, int qid) except -1:
        cdef uint32_t i
        if (qid, True) not in self.binding.places:
            raise ValueError(f"no completion queue {qid}")
        for i in range(self.state.max_queues + 1):
            if self.state.sqs[i] != NULL and self.state.sqs[i].cq == self.state.cqs[qid]:
                raise ValueError(f"submission queue {i} uses completion queue {qid}")
        with self.pausing.paused():
            self.binding.drop_cq(qid)
        return 0

    cdef int drop_all(self) except -1:
        """The admin queues too, while the engine is paused."""
        for qid in range(self.state.max_queues + 1):
            self.binding.drop_sq(qid)
            self.binding.drop_cq(qid)
        return 0

    cdef bint move(self, int cqid, int index, int patience_ms) except -1:
        cdef IOThread thread = self.find_thread(index)
        cdef IOThread old
        cdef CompletionQueue *cq
        if cqid == 0 or (cqid, True) not in self.binding.places:
            raise ValueError(f"no completion queue {cqid} for I/O")
        cq = self.state.cqs[cqid]
        old = self.find_thread(cq.thread.block.index)
        if old is thread:
            return True
        if not old.post(OP_RELEASE, self.state, NULL, cq, patience_ms):
            return False
        thread.post(OP_ADOPT, self.state, NULL, cq)
        return True

    cdef IOThread find_thread(self, int index):
        cdef IOThread thread
        for thread in self.threads:
            if thread.index == index:
                return thread
        raise ValueError(f"no IOThread {index}")

    cdef list loads(self):
        return [(cqid, self.state.cqs[cqid].thread.block.index, work_done(self.state, cqid))
                for cqid in range(1, self.state.max_queues + 1) if self.state.cqs[cqid] != NULL]

    cdef int set_coalescing(self, uint32_t entries, uint32_t microseconds, exempt) except -1:
        cdef uint32_t qid
        with self.pausing.paused():
            self.coalescing = (entries, microseconds, exempt)
            for qid in range(1, self.state.max_queues + 1):
                if self.state.cqs[qid] != NULL:
                    self.coalesce(self.state.cqs[qid])
        return 0

    cdef int coalesce(self, CompletionQueue *cq) except -1:
        entries, microseconds, exempt = self.coalescing
        cq.threshold = 1 if cq.vector in exempt else entries
        cq.delay = in_ticks(&cq.thread.pace, <uint64_t> microseconds * 1000)
        return 0
