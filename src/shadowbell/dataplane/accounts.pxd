from libc.stdint cimport uint32_t, uint64_t

from shadowbell.dataplane.dma cimport Memory
from shadowbell.dataplane.layout cimport EngineState

cdef list take_events(EngineState *state, Memory memory)
cdef uint64_t work_done(EngineState *state, uint32_t cqid) noexcept
cdef object queue_ledger(EngineState *state, uint32_t qid)
