# Memory in whole cache lines, for what several threads touch: two of them changing words of one line
# take it from each other each time, whatever the words are.

from libc.stddef cimport size_t
from libc.string cimport memset
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap
from posix.stdlib cimport posix_memalign

cdef enum:
    LINE = 64                  # bytes; where lines are longer, neighbours share one


cdef inline void *take_lines(size_t count, size_t size) noexcept nogil:
    """Zeroed memory for so many structures, to be freed with free(); NULL: there is none."""
    cdef void *memory = NULL
    if posix_memalign(&memory, LINE, count * size):
        return NULL
    memset(memory, 0, count * size)
    return memory


cdef inline void *take_pages(size_t size) noexcept nogil:
    """Zeroed pages that cost nothing until they are touched, for munmap(); NULL: there are none."""
    cdef void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    return NULL if memory == MAP_FAILED else memory
