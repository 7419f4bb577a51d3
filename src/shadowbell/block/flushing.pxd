# Which flushes have something to do.
#
# Time is cut into generations; a flush ends one when it begins. A write that ends marks the
# generation it finds. So all that ended before a flush began is marked with that flush's generation
# or an older one, and once the flush has succeeded nothing up to its generation is volatile. A write
# that finds a generation just before a flush ends it was done moving its data by then, so that flush
# covers it too.
#
# Marking is two loads, but for the first write of a generation, so writers on several IOThreads don't
# pass a cache line around.

from libc.stdint cimport uint64_t

from shadowbell.block.backend cimport BlockState
from shadowbell.dataplane.includes.cpu cimport add64, load64, swap_if64


cdef inline void mark_written(BlockState *backend) noexcept nogil:
    """A write without FUA has ended, in whatever way, and isn't known to be stable."""
    cdef uint64_t generation = load64(&backend.generation)
    cdef uint64_t seen = load64(&backend.written)
    while seen < generation and not swap_if64(&backend.written, seen, generation):
        seen = load64(&backend.written)


cdef inline uint64_t begin_flush(BlockState *backend) noexcept nogil:
    """The generation that a flush is about to make stable; 0 when nothing is volatile."""
    if load64(&backend.written) <= load64(&backend.flushed):
        return 0
    return add64(&backend.generation, 1)


cdef inline void end_flush(BlockState *backend, uint64_t generation) noexcept nogil:
    """A flush that began with the generation has succeeded."""
    cdef uint64_t seen = load64(&backend.flushed)
    while seen < generation and not swap_if64(&backend.flushed, seen, generation):
        seen = load64(&backend.flushed)
