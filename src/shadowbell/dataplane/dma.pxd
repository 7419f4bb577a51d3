from libc.stdint cimport uint8_t, uint32_t, uint64_t

from shadowbell.dataplane.layout cimport DmaTable, Segment


# Goes up each time that a client's shrunken file was met, in whatever mapping.
cdef uint32_t *bus_error_count


cdef inline Segment *find_segment(DmaTable *table, uint32_t *hint, uint64_t iova) noexcept nogil:
    """The segment that holds iova, or NULL. hint: the last hit, tried first."""
    cdef uint32_t low = 0, high = table.count, middle
    cdef Segment *segment
    if hint[0] < high:
        segment = &table.segments[hint[0]]
        if iova - segment.iova < segment.length:
            return segment
    while low < high:
        middle = (low + high) >> 1
        segment = &table.segments[middle]
        if iova < segment.iova:
            high = middle
        elif iova - segment.iova < segment.length:
            hint[0] = middle
            return segment
        else:
            low = middle + 1
    return NULL


cdef inline uint8_t *translate(DmaTable *table, uint32_t *hint, uint64_t iova, uint64_t length,
                               uint32_t access) noexcept nogil:
    """Host address of [iova, iova + length) when it lies in one segment that allows the access."""
    cdef Segment *segment = find_segment(table, hint, iova)
    if segment == NULL or segment.host == NULL or segment.access & access != access:
        return NULL
    if length > segment.length - (iova - segment.iova):
        return NULL
    return segment.host + (iova - segment.iova)


cdef class Mapping:
    cdef uint8_t *base
    cdef uint64_t offset       # of base in the file
    cdef uint64_t length
    cdef bint writable
    cdef bint sealed           # the file can't shrink
    cdef object key            # (st_dev, st_ino); None: not shared between ranges
    cdef uint32_t slot
    cdef uint32_t uses


cdef class Memory:
    cdef DmaTable *table
    cdef uint32_t room         # segments that fit the table
    cdef list mappings
    cdef object pins           # Pins that are told of whole files; None: nobody is
    cdef object mapping_for(self, int fd, uint64_t offset, uint64_t length)
    cdef int drop(self, Mapping mapping) except -1
    cdef int make_room(self) except -1
    cdef uint32_t position(self, uint64_t iova) noexcept
    cdef int copy_bytes(self, uint64_t iova, uint8_t *data, uint64_t length, bint write) except -1
    cpdef uint64_t pinned_bytes(self)
    cpdef bint covers(self, uint64_t iova, uint64_t length)
    cpdef bint bus_error(self)
