# Data in one buffer of ours, and in the host's pieces.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from shadowbell.block.backend cimport BlockRequest


cdef inline void gather(BlockRequest *request) noexcept nogil:
    """The host's pieces into the bounce buffer."""
    cdef uint8_t *to = <uint8_t *> request.bounce
    cdef uint32_t i
    for i in range(request.niov):
        memcpy(to, request.iov[i].iov_base, request.iov[i].iov_len)
        to += request.iov[i].iov_len


cdef inline void scatter(BlockRequest *request) noexcept nogil:
    """The bounce buffer into the host's pieces."""
    cdef uint8_t *source = <uint8_t *> request.bounce
    cdef uint32_t i
    for i in range(request.niov):
        memcpy(request.iov[i].iov_base, source, request.iov[i].iov_len)
        source += request.iov[i].iov_len
