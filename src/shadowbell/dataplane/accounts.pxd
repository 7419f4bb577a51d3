from libc.stdint cimport uint32_t

from shadowbell.dataplane.dma cimport Memory
from shadowbell.dataplane.layout cimport EngineState

cdef list take_events(EngineState *state, Memory memory)
cdef object queue_ledger(EngineState *state, uint32_t qid)
