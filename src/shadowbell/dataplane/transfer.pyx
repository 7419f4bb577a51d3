"""A command's data pointer, PRPs or an SGL, as a list of pieces of host memory.

NVMe Base 2.0, 4.1.1 (PRP) and 4.1.2 (SGL). Lists live in the guest's memory, which the guest may
change while we read: each is copied first and only the copy is looked at.

Not supported, and not offered in SGLS: bit buckets, keyed and transport descriptors.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from shadowbell.dataplane.dma cimport find_segment
from shadowbell.dataplane.includes.uring cimport iovec
from shadowbell.dataplane.layout cimport (
    DMA_READ_ACCESS,
    MAX_IOVECS,
    PAGE_SIZE,
    DmaTable,
    Segment,
)
from shadowbell.dataplane.status cimport (
    DATA_SGL_LENGTH_INVALID,
    DATA_TRANSFER_ERROR,
    INVALID_FIELD_IN_COMMAND,
    INVALID_NUMBER_OF_SGL_DESCRIPTORS,
    INVALID_PRP_OFFSET,
    INVALID_SGL_SEGMENT_DESCRIPTOR,
    SGL_DESCRIPTOR_TYPE_INVALID,
)

cdef enum:
    ENTRIES_PER_PAGE = PAGE_SIZE // 8
    DESCRIPTORS_PER_PAGE = PAGE_SIZE // 16
    # A guest can chain segments in a ring: stop counting somewhere.
    MAX_DESCRIPTORS = 4096
    # The largest transfer needs two lists, a third when the first begins at its page's end.
    MAX_LISTS = 3

cdef enum SglType:
    SGL_DATA_BLOCK = 0x00
    SGL_SEGMENT = 0x20
    SGL_LAST_SEGMENT = 0x30

cdef packed struct SglDescriptor:
    uint64_t address
    uint32_t length
    uint8_t reserved[3]
    uint8_t type

# What is being built, passed along as one.
cdef struct Pieces:
    DmaTable *table
    uint32_t *hint
    uint32_t access
    iovec *iov
    uint32_t count
    uint8_t *page


cdef int build_iov_slow(DmaTable *table, uint32_t *hint, const uint8_t *sqe, uint64_t length,
                        uint32_t access, iovec *iov, uint32_t *niov,
                        uint8_t *page) noexcept nogil:
    cdef Pieces pieces
    cdef int status
    cdef uint8_t psdt = sqe[1] >> 6
    pieces.table = table
    pieces.hint = hint
    pieces.access = access
    pieces.iov = iov
    pieces.count = 0
    pieces.page = page
    if psdt == 0:
        status = walk_prps(&pieces, (<const uint64_t *> (sqe + 24))[0],
                           (<const uint64_t *> (sqe + 32))[0], length)
    elif psdt == 3:
        status = INVALID_FIELD_IN_COMMAND
    else:
        status = walk_sgl(&pieces, (<const SglDescriptor *> (sqe + 24))[0], length)
    niov[0] = pieces.count
    return status


cdef int append(Pieces *pieces, uint64_t iova, uint64_t length) noexcept nogil:
    """Add a range, in as many pieces as it has segments; neighbours in host memory become one."""
    cdef Segment *segment
    cdef uint64_t part
    cdef uint8_t *host
    cdef iovec *last
    while length:
        segment = find_segment(pieces.table, pieces.hint, iova)
        if segment == NULL or segment.host == NULL or not segment.access & pieces.access:
            return DATA_TRANSFER_ERROR
        host = segment.host + (iova - segment.iova)
        part = min(length, segment.length - (iova - segment.iova))
        last = &pieces.iov[pieces.count - 1]
        if pieces.count and <uint8_t *> last.iov_base + last.iov_len == host:
            last.iov_len += part
        elif pieces.count == MAX_IOVECS:
            return INVALID_NUMBER_OF_SGL_DESCRIPTORS
        else:
            pieces.iov[pieces.count].iov_base = host
            pieces.iov[pieces.count].iov_len = part
            pieces.count += 1
        iova += part
        length -= part
    return 0


cdef int copy_list(Pieces *pieces, uint64_t iova, uint64_t length) noexcept nogil:
    """Copy up to a page of a list out of the guest's memory."""
    cdef uint8_t *to = pieces.page
    cdef Segment *segment
    cdef uint64_t part
    while length:
        segment = find_segment(pieces.table, pieces.hint, iova)
        if segment == NULL or segment.host == NULL or not segment.access & DMA_READ_ACCESS:
            return DATA_TRANSFER_ERROR
        part = min(length, segment.length - (iova - segment.iova))
        memcpy(to, segment.host + (iova - segment.iova), part)
        to += part
        iova += part
        length -= part
    return 0


cdef int walk_prps(Pieces *pieces, uint64_t prp1, uint64_t prp2,
                   uint64_t length) noexcept nogil:
    cdef uint64_t *entries = <uint64_t *> pieces.page
    cdef uint64_t part, needed, room, i
    cdef uint32_t hops = 0
    cdef int status
    if prp1 & 3:
        return INVALID_PRP_OFFSET
    part = min(length, PAGE_SIZE - (prp1 & (PAGE_SIZE - 1)))
    status = append(pieces, prp1, part)
    length -= part
    if status or length == 0:
        return status
    if length <= PAGE_SIZE:
        if prp2 & (PAGE_SIZE - 1):
            return INVALID_PRP_OFFSET
        return append(pieces, prp2, length)
    while length:
        if prp2 & 7:
            return INVALID_PRP_OFFSET
        # A list runs to the end of its page; its last entry there points on when more is needed.
        needed = (length + PAGE_SIZE - 1) // PAGE_SIZE
        room = ENTRIES_PER_PAGE - (prp2 & (PAGE_SIZE - 1)) // 8
        status = copy_list(pieces, prp2, min(needed, room) * 8)
        if status:
            return status
        for i in range(min(needed, room)):
            if i == room - 1 and needed > room:
                break
            if entries[i] & (PAGE_SIZE - 1):
                return INVALID_PRP_OFFSET
            part = min(length, <uint64_t> PAGE_SIZE)
            status = append(pieces, entries[i], part)
            if status:
                return status
            length -= part
        prp2 = entries[room - 1]
        hops += 1
        if hops > MAX_LISTS:
            return INVALID_PRP_OFFSET
    return 0


cdef int walk_sgl(Pieces *pieces, SglDescriptor descriptor, uint64_t length) noexcept nogil:
    cdef SglDescriptor *descriptors = <SglDescriptor *> pieces.page
    cdef uint64_t segment, left
    cdef uint32_t i = 0, chunk = 0, seen = 0
    cdef bint last_segment = False
    cdef int status
    if descriptor.type == SGL_DATA_BLOCK:
        if descriptor.length != length:
            return DATA_SGL_LENGTH_INVALID
        return append(pieces, descriptor.address, length)
    left = 0
    segment = 0
    while True:
        # descriptor is the next to be looked at; left: bytes of its segment behind it.
        if descriptor.type == SGL_DATA_BLOCK:
            if descriptor.length > length:
                return DATA_SGL_LENGTH_INVALID
            status = append(pieces, descriptor.address, descriptor.length)
            if status:
                return status
            length -= descriptor.length
            if left == 0:
                if not last_segment:
                    return INVALID_SGL_SEGMENT_DESCRIPTOR
                return DATA_SGL_LENGTH_INVALID if length else 0
        elif descriptor.type == SGL_SEGMENT or descriptor.type == SGL_LAST_SEGMENT:
            if last_segment or left or descriptor.length == 0 or descriptor.length & 15:
                return INVALID_SGL_SEGMENT_DESCRIPTOR
            last_segment = descriptor.type == SGL_LAST_SEGMENT
            segment = descriptor.address
            left = descriptor.length
            i = chunk = 0
        else:
            return SGL_DESCRIPTOR_TYPE_INVALID
        seen += 1
        if seen > MAX_DESCRIPTORS:
            return INVALID_NUMBER_OF_SGL_DESCRIPTORS
        if i == chunk:
            chunk = <uint32_t> min(left // 16, <uint64_t> DESCRIPTORS_PER_PAGE)
            status = copy_list(pieces, segment, chunk * 16)
            if status:
                return status
            segment += chunk * 16
            i = 0
        descriptor = descriptors[i]
        i += 1
        left -= 16
