from libc.stdint cimport uint8_t, uint32_t, uint64_t

from shadowbell.dataplane.layout cimport Channel, EngineState, ThreadState

cdef enum Parsed:
    PARSED_NOTHING             # no whole message: read on
    PARSED_MESSAGE             # a message for the control plane is at the front
    PARSED_BROKEN              # no message can be there: the stream is lost

cdef int take_doorbells(ThreadState *current, Channel *channel, uint32_t *size) noexcept nogil
cdef int receive(Channel *channel) noexcept nogil
cdef void doorbell_written(ThreadState *current, EngineState *engine, uint64_t offset,
                           uint32_t value) noexcept nogil
