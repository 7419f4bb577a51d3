from libc.stdint cimport uint8_t, uint32_t, uint64_t

from shadowbell.dataplane.dma cimport translate
from shadowbell.dataplane.includes.cpu cimport likely
from shadowbell.dataplane.includes.uring cimport iovec
from shadowbell.dataplane.layout cimport PAGE_SIZE, DmaTable


cdef int build_iov_slow(DmaTable *table, uint32_t *hint, const uint8_t *sqe, uint64_t length,
                        uint32_t access, iovec *iov, uint32_t *niov,
                        uint8_t *page) noexcept nogil


cdef inline int build_iov(DmaTable *table, uint32_t *hint, const uint8_t *sqe, uint64_t length,
                          uint32_t access, iovec *iov, uint32_t *niov,
                          uint8_t *page) noexcept nogil:
    """Turn a command's data pointer into host memory; returns a status (SCT << 8 | SC).

    sqe: our copy of the command. iov: room for MAX_IOVECS. page: scratch of one page, to copy PRP
    lists and SGL segments into before they are looked at.
    """
    cdef uint64_t prp1 = (<const uint64_t *> (sqe + 24))[0]
    cdef uint8_t *host
    if likely(sqe[1] & 0xC0 == 0 and prp1 & 3 == 0
              and length <= PAGE_SIZE - (prp1 & (PAGE_SIZE - 1))):
        host = translate(table, hint, prp1, length, access)
        if likely(host != NULL):
            iov.iov_base = host
            iov.iov_len = length
            niov[0] = 1
            return 0
    return build_iov_slow(table, hint, sqe, length, access, iov, niov, page)
