# What the load loop asks of the verifier, per command.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef inline uint64_t mix(uint64_t value) noexcept nogil:
    """Spread the bits of a number over all of it."""
    value = (value ^ (value >> 30)) * <uint64_t>0xbf58476d1ce4e5b9
    value = (value ^ (value >> 27)) * <uint64_t>0x94d049bb133111eb
    return value ^ (value >> 31)


cdef class Verifier:
    cdef readonly uint64_t blocks
    cdef readonly uint32_t lba_size
    cdef readonly uint64_t seed
    cdef uint32_t *stable          # generation whose write completed last
    cdef uint32_t *latest          # generation last submitted
    cdef void begin(self, uint64_t lba, uint64_t count, uint8_t *data) noexcept nogil
    cdef void written(self, uint64_t lba, uint64_t count) noexcept nogil
    cdef int64_t wrong(self, uint64_t lba, uint64_t count, const uint8_t *data) noexcept nogil
    cdef uint64_t whole(self, uint64_t lba, uint64_t length) except? 0
