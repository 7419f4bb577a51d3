"""The latency histogram's buckets and its clock, as Python sees them."""

from libc.stdint cimport uint64_t
from posix.unistd cimport usleep

from shadowbell.driver.hostring cimport sb_nanoseconds, sb_ticks

HISTOGRAM_BUCKETS = BUCKETS


def histogram_bucket(value) -> int:
    """The latency bucket of ``value`` ticks."""
    return bucket_of(<uint64_t>value)


def histogram_floor(bucket) -> int:
    """The least value that falls into ``bucket``."""
    if bucket < (1 << SUB_BITS):
        return bucket
    octave = bucket >> SUB_BITS
    return ((bucket & 63) | 64) << (octave - 1)


cdef double nanoseconds_per_tick = 0


def tick_nanoseconds() -> float:
    """Nanoseconds in a tick of the latency clock, measured once against CLOCK_MONOTONIC."""
    global nanoseconds_per_tick
    cdef uint64_t time, ticks
    if nanoseconds_per_tick == 0:
        time, ticks = sb_nanoseconds(), sb_ticks()
        usleep(5000)
        nanoseconds_per_tick = <double>(sb_nanoseconds() - time) / <double>(sb_ticks() - ticks)
    return nanoseconds_per_tick
