# Latency buckets, log-linear: 64 an octave, each at most 1.6 % wide.

from libc.stdint cimport uint64_t

cdef extern from * nogil:
    """
    #define sb_top_bit(v) (63 - __builtin_clzll(v))
    """
    int sb_top_bit(uint64_t) noexcept

cdef enum:
    SUB_BITS = 6
    BUCKETS = 3776             # (64 - SUB_BITS + 1) << SUB_BITS


cdef inline int bucket_of(uint64_t value) noexcept nogil:
    cdef int top
    if value < (1 << SUB_BITS):
        return <int>value
    top = sb_top_bit(value)
    return ((top - SUB_BITS + 1) << SUB_BITS) + <int>((value >> (top - SUB_BITS)) & 63)
