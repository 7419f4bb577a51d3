# What the kernel says of a thread's time (Linux: Documentation/scheduler/sched-stats.rst).

from libc.stdint cimport uint64_t
from libc.stdlib cimport strtoull
from posix.unistd cimport pread


cdef inline bint read_schedstat(int fd, uint64_t *ran, uint64_t *waited) noexcept nogil:
    """The nanoseconds that the thread ran and those that it waited for a processor, since it began.

    fd: of its /proc/thread-self/schedstat. False: the kernel doesn't say.
    """
    cdef char text[64]
    cdef char *end = text
    cdef ssize_t count = pread(fd, text, sizeof(text) - 1, 0)
    if count <= 0:
        return False
    text[count] = 0
    ran[0] = strtoull(end, &end, 10)
    waited[0] = strtoull(end, &end, 10)
    return ran[0] != 0  # else the kernel keeps no count: all are zeros
