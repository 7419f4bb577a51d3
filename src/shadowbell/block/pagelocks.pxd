# Copies between a disk in memory and the host's memory, each page of the disk whole: two IOThreads
# may be at the same blocks, and NVMe promises that a read sees a write of one block (AWUN, the least
# that can be reported) wholly or not at all. Pages share PAGE_LOCKS words by their number.
#
# A word is a sequence number, odd while the page is written. Readers store nothing, so reading costs
# two loads; a reader that met a writer copies again.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from shadowbell.block.copying cimport copy_from_disk, copy_to_disk
from shadowbell.dataplane.includes.cpu cimport load32, relax, store32, swap_if32
from shadowbell.dataplane.includes.uring cimport iovec

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from *:
    """
    static inline void sb_loads_done(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
    static inline void sb_stores_follow(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
    """
    void loads_done "sb_loads_done"() noexcept nogil
    void stores_follow "sb_stores_follow"() noexcept nogil

cdef enum:
    DISK_PAGE = 4096
    PAGE_LOCKS = 1024
    SPINS = 64         # before the processor is given to who may hold the lock

# Where in an iovec a copy is.
cdef struct Place:
    iovec *iov
    uint64_t used      # bytes of *iov


cdef inline void pause(uint32_t *spins) noexcept nogil:
    spins[0] += 1
    if spins[0] % SPINS:
        relax()
    else:
        sched_yield()


cdef inline void lock_page(uint32_t *word) noexcept nogil:
    cdef uint32_t seen, spins = 0
    while True:
        seen = load32(word)
        if not seen & 1 and swap_if32(word, seen, seen + 1):
            stores_follow()
            return
        pause(&spins)


cdef inline void unlock_page(uint32_t *word) noexcept nogil:
    store32(word, word[0] + 1)


cdef inline void move(uint8_t *disk, Place *place, uint64_t length, bint to_disk) noexcept nogil:
    cdef uint8_t *memory
    cdef uint64_t part
    while length:
        if place.used == place.iov.iov_len:
            place.iov += 1
            place.used = 0
        memory = <uint8_t *> place.iov.iov_base + place.used
        part = min(length, place.iov.iov_len - place.used)
        if to_disk:
            copy_to_disk(disk, memory, part)
        else:
            copy_from_disk(memory, disk, part)
        place.used += part
        disk += part
        length -= part


cdef inline void write_pages(uint32_t *locks, uint8_t *disk, uint64_t offset, iovec *iov,
                             uint64_t length) noexcept nogil:
    """Write ``length`` bytes at ``offset`` of the disk that begins at ``disk``."""
    cdef Place place
    cdef uint64_t part
    cdef uint32_t *word
    place.iov = iov
    place.used = 0
    while length:
        part = min(length, DISK_PAGE - offset % DISK_PAGE)
        word = &locks[offset // DISK_PAGE % PAGE_LOCKS]
        lock_page(word)
        move(disk + offset, &place, part, True)
        unlock_page(word)
        offset += part
        length -= part


cdef inline void read_pages(uint32_t *locks, uint8_t *disk, uint64_t offset, iovec *iov,
                            uint64_t length) noexcept nogil:
    """Read ``length`` bytes at ``offset`` of the disk that begins at ``disk``."""
    cdef Place place, after
    cdef uint64_t part
    cdef uint32_t *word
    cdef uint32_t seen, spins = 0
    place.iov = iov
    place.used = 0
    while length:
        part = min(length, DISK_PAGE - offset % DISK_PAGE)
        word = &locks[offset // DISK_PAGE % PAGE_LOCKS]
        while True:
            seen = load32(word)
            if not seen & 1:
                after = place
                move(disk + offset, &after, part, False)
                loads_done()
                if load32(word) == seen:
                    break
            pause(&spins)
        place = after
        offset += part
        length -= part


cdef inline void lock_pages(uint32_t *locks, uint64_t offset, uint64_t length) noexcept nogil:
    """Lock all pages of a range of up to PAGE_LOCKS whole pages, in the order of the words."""
    cdef uint64_t first = offset // DISK_PAGE % PAGE_LOCKS
    cdef uint64_t last = first + length // DISK_PAGE
    cdef uint64_t i
    for i in range(PAGE_LOCKS):
        if first <= i < last or i + PAGE_LOCKS < last:
            lock_page(&locks[i])


cdef inline void unlock_pages(uint32_t *locks, uint64_t offset, uint64_t length) noexcept nogil:
    cdef uint64_t i
    for i in range(length // DISK_PAGE):
        unlock_page(&locks[(offset // DISK_PAGE + i) % PAGE_LOCKS])
