from shadowbell.block.backend cimport BlockState, FixedRange
from shadowbell.dataplane.layout cimport CompletionQueue, EngineState, ThreadState

cdef double ticks_a_second()

cdef class IOThread:
    cdef ThreadState state
    cdef readonly int index
    cdef readonly object cpu
    cdef object thread
    cdef object lock
    cdef object started
    cdef object failure
    cdef int rings             # RingOption
    cdef bint post(self, int kind, EngineState *engine, BlockState *backend=*,
                   CompletionQueue *cq=*, int patience_ms=*,
                   FixedRange *memory=*) except -1
