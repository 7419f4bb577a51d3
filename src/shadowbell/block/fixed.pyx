"""Memory that stays where it is, registered in the IOThreads' rings.

Pinning makes every page of the memory, which takes seconds for gigabytes, and a ring takes buffers
from its own thread only. So memory is pinned once, in a ring of its own and by a thread that nobody
waits for; the IOThreads' rings are then given references, which takes microseconds. The last
reference is dropped where it was pinned.
"""

from libc.errno cimport ENOSPC, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memmove

import os

from shadowbell.block.backend cimport MAX_RANGES, BlockContext, FixedRange, FixedTable
from shadowbell.dataplane.includes.uring cimport (
    IORING_OP_READV_FIXED,
    IORING_OP_WRITEV_FIXED,
    io_uring,
    io_uring_free_probe,
    io_uring_get_probe_ring,
    io_uring_opcode_supported,
    io_uring_probe,
    io_uring_queue_exit,
    io_uring_queue_init,
    io_uring_register_buffers_sparse,
    io_uring_register_buffers_update_tag,
    io_uring_unregister_buffers,
    iovec,
    uring_clone_buffers,
)
from shadowbell.dataplane.live cimport count_live


cdef extern from *:
    """
    #include <sys/mman.h>
    #ifndef MADV_POPULATE_WRITE  /* Linux 5.14 */
    #define MADV_POPULATE_WRITE 23
    #endif
    """
    enum:
        MADV_POPULATE_WRITE
    int madvise(void *address, size_t length, int advice) nogil

cdef enum:
    # Whoever changes this process's address space waits meanwhile, and page faults behind that.
    STEP_SIZE = 2097152
    BATCH = 64                 # slots that are cleared by one system call

cdef iovec nothing[BATCH]


cdef class PinnedMemory:
    """``length`` bytes at ``address``. Call ``begin``, then ``pin_more`` until it is done, and
    ``close`` whatever happened.

    ``slot``: the first of the slots that it takes in the rings' tables, ``chunk_count`` of them.
    """

    def __cinit__(self, uint64_t address, uint64_t length, uint32_t slot):
        self.memory.start = address
        self.memory.length = length
        self.memory.slot = slot
        self.memory.chunks = chunk_count(length)

    def __dealloc__(self):
        self.close()

    cdef int begin(self) except -1:
        """Raises ``OSError``, as ``pin_more`` does."""
        check(io_uring_queue_init(1, &self.ring, 0))
        self.open = True
        count_live(b"pinned", 1)
        self.memory.source = self.ring.ring_fd
        self.memory.vectored = takes_pieces(&self.ring)
        check(io_uring_register_buffers_sparse(&self.ring, self.memory.chunks))
        return 0

    cdef bint pin_more(self) except -1:
        """Take a step; True when all is pinned."""
        cdef uint64_t first = <uint64_t> self.pinned << CHUNK_SHIFT
        cdef uint64_t end = min(first + CHUNK_SIZE, self.memory.length)
        cdef uint64_t size = min(end - self.populated, <uint64_t> STEP_SIZE)
        cdef int error
        cdef iovec chunk
        with nogil:
            error = madvise(<void *> (self.memory.start + self.populated), size,
                            MADV_POPULATE_WRITE)
        if error:
            raise OSError(errno, os.strerror(errno))
        self.populated += size
        if self.populated < end:
            return False
        chunk.iov_base = <void *> (self.memory.start + first)
        chunk.iov_len = end - first
        with nogil:
            error = io_uring_register_buffers_update_tag(&self.ring, self.pinned, &chunk, NULL, 1)
        check(error)
        self.pinned += 1
        return self.pinned == self.memory.chunks

    cdef void close(self):
        """Let go of the memory. No other ring may know it any more."""
        if self.open:
            self.open = False
            with nogil:
                io_uring_unregister_buffers(&self.ring)
                io_uring_queue_exit(&self.ring)
            count_live(b"pinned", -1)


cdef uint32_t chunk_count(uint64_t length) noexcept nogil:
    return <uint32_t> ((length + CHUNK_SIZE - 1) >> CHUNK_SHIFT)


cdef int check(int result) except -1:
    """Raise ``OSError`` for a result of liburing's that is one."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return 0


cdef bint takes_pieces(io_uring *ring) noexcept nogil:
    """Has the kernel vectored transfers to registered memory? Linux 6.15 and newer."""
    cdef io_uring_probe *probe = io_uring_get_probe_ring(ring)
    cdef bint found
    if probe == NULL:
        return False
    found = (io_uring_opcode_supported(probe, IORING_OP_READV_FIXED)
             and io_uring_opcode_supported(probe, IORING_OP_WRITEV_FIXED))
    io_uring_free_probe(probe)
    return found


# --- on the IOThread ----------------------------------------------------------------------------

cdef void enter_range(BlockContext *context, FixedRange *memory) noexcept nogil:
    """Tell the rings of pinned memory; the range's ``error`` says how it went."""
    cdef FixedTable *table = &context.fixed
    cdef uint32_t i
    if table.count == MAX_RANGES:
        memory.error = -ENOSPC
        return
    memory.error = uring_clone_buffers(&context.ring, memory.source, memory.slot, memory.chunks)
    if memory.error:
        return
    if context.has_polled:
        memory.error = uring_clone_buffers(
            &context.polled, memory.source, memory.slot, memory.chunks)
        if memory.error:
            forget(&context.ring, memory)
            return
    i = position(table, memory.start)
    memmove(&table.ranges[i + 1], &table.ranges[i], (table.count - i) * sizeof(FixedRange *))
    table.ranges[i] = memory
    table.count += 1


cdef void leave_range(BlockContext *context, FixedRange *memory) noexcept nogil:
    """Have the rings forget memory that no transfer is under way to, if they know it."""
    cdef FixedTable *table = &context.fixed
    cdef uint32_t i = position(table, memory.start)
    if i == table.count or table.ranges[i] != memory:
        return
    table.count -= 1
    memmove(&table.ranges[i], &table.ranges[i + 1], (table.count - i) * sizeof(FixedRange *))
    table.hint = 0
    forget(&context.ring, memory)
    if context.has_polled:
        forget(&context.polled, memory)


cdef void forget(io_uring *ring, FixedRange *memory) noexcept nogil:
    cdef uint32_t done = 0, count
    while done < memory.chunks:
        count = min(memory.chunks - done, <uint32_t> BATCH)
        io_uring_register_buffers_update_tag(ring, memory.slot + done, nothing, NULL, count)
        done += count


cdef FixedRange *find_range(FixedTable *table, uint64_t address) noexcept nogil:
    """The range that holds the address, or NULL; it becomes the hint."""
    cdef uint32_t i = position(table, address + 1)
    if i == 0 or address - table.ranges[i - 1].start >= table.ranges[i - 1].length:
        return NULL
    table.hint = i - 1
    return table.ranges[i - 1]


cdef uint32_t position(FixedTable *table, uint64_t address) noexcept nogil:
    """Index of the first range at or above the address."""
    cdef uint32_t low = 0, high = table.count, middle
    while low < high:
        middle = (low + high) >> 1
        if table.ranges[middle].start < address:
            low = middle + 1
        else:
            high = middle
    return low
