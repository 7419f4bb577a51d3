"""A disk in memory: gone when the server stops, as fast as the machine copies."""

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.mman cimport (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    mmap,
    munmap,
)

from shadowbell.block.backend cimport (
    BLOCK_DISCARD,
    BLOCK_DONE,
    BLOCK_READ,
    BLOCK_WRITE,
    BLOCK_ZERO,
    Backend,
    BlockContext,
    BlockRequest,
    BlockState,
)
from shadowbell.block.pagelocks cimport (
    PAGE_LOCKS,
    lock_page,
    lock_pages,
    read_pages,
    unlock_page,
    unlock_pages,
    write_pages,
)

import os


cdef extern from "<sys/mman.h>" nogil:
    enum:
        MADV_DONTNEED
        MADV_HUGEPAGE
        MAP_NORESERVE
        MREMAP_FIXED
        MREMAP_MAYMOVE
    void *mremap(void *old, size_t old_size, size_t new_size, int flags, void *new)
    int madvise(void *address, size_t length, int advice)

cdef enum:
    PAGE = 4096
    HUGE_PAGE = 2097152
    # Below this a memset is cheaper than giving pages back and faulting them in again.
    GIVE_BACK = 65536


cdef class MemoryBackend(Backend):
    """``size`` bytes of anonymous memory, taken as they are written.

    In pages of 2 MiB when all of it would fit twice into the machine's memory: a disk's random blocks
    then need a tenth of the address translations. A larger disk is sparse, and takes 4 KiB at a time.
    """

    cdef uint32_t locks[PAGE_LOCKS]

    def __init__(self, size, *, read_only=False):
        self.kind = "memory"
        self.read_only = read_only
        self.supports_discard = True
        self.state.memory = reserve(size)
        self.state.size = size
        self.state.own = &self.locks[0]
        self.state.submit = memory_submit
        self.state.advance = memory_advance

    def resize(self, uint64_t size):
        cdef uint64_t kept = min(size, self.state.size)
        cdef uint8_t *memory = reserve(size)
        if mremap(self.state.memory, self.state.size, size, MREMAP_MAYMOVE | MREMAP_FIXED,
                  memory) == MAP_FAILED:
            munmap(memory, size)
            raise OSError(errno, "can't reserve the memory")
        self.state.memory = memory
        self.state.size = size
        advise(memory, size)
        # What is left of a page may come to light when the disk grows again.
        memset(self.state.memory + kept, 0, min(-kept & (PAGE - 1), size - kept))

    def close(self):
        if self.state.memory != NULL:
            munmap(self.state.memory, self.state.size)
            self.state.memory = NULL
        self.closed = True

    def __dealloc__(self):
        if self.state.memory != NULL:
            munmap(self.state.memory, self.state.size)


cdef uint8_t *reserve(uint64_t size) except NULL:
    """Zeroed memory that begins where a huge page may."""
    cdef uint64_t room = size + HUGE_PAGE
    cdef uint64_t skipped
    cdef void *memory = mmap(
        NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
    )
    if memory == MAP_FAILED:
        raise OSError(errno, "can't reserve the memory")
    skipped = -<uint64_t> memory & (HUGE_PAGE - 1)
    if skipped:
        munmap(memory, skipped)
    # The kernel takes whole pages, and the disk may end within one.
    size = (size + PAGE - 1) & ~(<uint64_t> PAGE - 1)
    munmap(<uint8_t *> memory + skipped + size, room - skipped - size)
    advise(<uint8_t *> memory + skipped, size)
    return <uint8_t *> memory + skipped


cdef void advise(uint8_t *memory, uint64_t size):
    if size <= <uint64_t> os.sysconf("SC_PHYS_PAGES") * <uint64_t> os.sysconf("SC_PAGE_SIZE") // 2:
        madvise(memory, size, MADV_HUGEPAGE)  # a kernel without huge pages refuses: no matter


cdef int memory_submit(BlockContext *context, BlockRequest *request) noexcept nogil:
    cdef BlockState *state = request.backend
    cdef uint32_t *locks = <uint32_t *> state.own
    request.result = 0
    if request.op == BLOCK_READ:
        read_pages(locks, state.memory, request.offset, request.iov, request.length)
    elif request.op == BLOCK_WRITE:
        write_pages(locks, state.memory, request.offset, request.iov, request.length)
    elif request.op == BLOCK_ZERO or request.op == BLOCK_DISCARD:
        zero(locks, state.memory, request.offset, request.length)
    return BLOCK_DONE


cdef void zero(uint32_t *locks, uint8_t *disk, uint64_t offset, uint64_t length) noexcept nogil:
    """Zeros, page by page; many whole pages are given back instead."""
    cdef uint64_t part
    cdef uint32_t *word
    while length:
        if offset % PAGE == 0 and length >= GIVE_BACK:
            part = min(length & ~(<uint64_t> PAGE - 1), <uint64_t> PAGE * PAGE_LOCKS)
            lock_pages(locks, offset, part)
            if madvise(disk + offset, part, MADV_DONTNEED):
                memset(disk + offset, 0, part)
            unlock_pages(locks, offset, part)
        else:
            part = min(length, PAGE - offset % PAGE)
            word = &locks[offset // PAGE % PAGE_LOCKS]
            lock_page(word)
            memset(disk + offset, 0, part)
            unlock_page(word)
        offset += part
        length -= part


cdef int memory_advance(BlockContext *context, BlockRequest *request, int res) noexcept nogil:
    return BLOCK_DONE
