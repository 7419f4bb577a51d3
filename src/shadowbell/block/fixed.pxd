# Memory that an IOThread's rings have registered (io_uring's fixed buffers), and the buffer that a
# transfer lies in, found by host address. A range is cut into chunks, each of which is a buffer: the
# kernel pins one with the interrupts of its processor off.
#
# Who may write what: the table belongs to its IOThread, which changes it when it is told to. A range
# outlives its place in every table.

from libc.stdint cimport uint32_t, uint64_t

from shadowbell.block.backend cimport BlockContext, FixedRange, FixedTable
from shadowbell.dataplane.includes.uring cimport io_uring, iovec

cdef enum:
    CHUNK_SHIFT = 26           # 64 MiB
    CHUNK_SIZE = 67108864
    MAX_SLOTS = 16384          # of a ring: the kernel's limit

cdef uint32_t chunk_count(uint64_t length) noexcept nogil
cdef void enter_range(BlockContext *context, FixedRange *memory) noexcept nogil
cdef void leave_range(BlockContext *context, FixedRange *memory) noexcept nogil
cdef FixedRange *find_range(FixedTable *table, uint64_t address) noexcept nogil


cdef class PinnedMemory:
    cdef FixedRange memory
    cdef io_uring ring
    cdef bint open
    cdef uint64_t populated    # bytes from the start that have pages
    cdef uint32_t pinned       # chunks
    cdef int begin(self) except -1
    cdef bint pin_more(self) except -1
    cdef void close(self)


cdef inline int fixed_buffer(FixedTable *table, const iovec *iov, uint32_t niov) noexcept nogil:
    """The slot of the buffer that all of the pieces lie in, or -1."""
    cdef FixedRange *memory
    cdef uint64_t address, chunk, start, size
    cdef uint32_t i
    if table.count == 0:
        return -1
    address = <uint64_t> iov.iov_base
    memory = table.ranges[table.hint]
    if address - memory.start >= memory.length:
        memory = find_range(table, address)
        if memory == NULL:
            return -1
    if niov > 1 and not memory.vectored:
        return -1
    chunk = (address - memory.start) >> CHUNK_SHIFT
    start = memory.start + (chunk << CHUNK_SHIFT)
    size = min(memory.start + memory.length - start, <uint64_t> CHUNK_SIZE)
    for i in range(niov):
        address = <uint64_t> iov[i].iov_base
        if address - start >= size or iov[i].iov_len > size - (address - start):
            return -1
    return <int> (memory.slot + chunk)
