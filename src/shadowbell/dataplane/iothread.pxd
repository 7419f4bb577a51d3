from shadowbell.block.backend cimport BlockState
from shadowbell.dataplane.layout cimport EngineState, ThreadState

cdef class IOThread:
    cdef ThreadState state
    cdef readonly int index
    cdef readonly object cpu
    cdef object thread
    cdef object lock
    cdef object started
    cdef object failure
    cdef readonly int engines
    cdef void post(self, int kind, EngineState *engine, BlockState *backend=*) except *
