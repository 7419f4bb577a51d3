"""The bare round trip that waking a sleeping device costs: a message out, an eventfd back.

Nothing of vfio-user or NVMe is left but the size of a posted REGION_WRITE (36 bytes). Both sides
sleep in the plainest way there is, a blocking read.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset
from posix.unistd cimport read

from shadowbell.driver.hostring cimport sb_nanoseconds, sb_post, sb_signal, sb_ticks
from shadowbell.driver.histogram import histogram_bucket, tick_nanoseconds

cdef enum:
    MESSAGE = 36
    BATCH = 256                    # round trips between looks for a signal


def echo(int connection, int event) -> None:
    """Answer every message on the socket by the eventfd, until the peer hangs up."""
    cdef uint8_t message[MESSAGE]
    with nogil:
        while read(connection, message, MESSAGE) > 0:
            if sb_signal(event):
                break


def ping(int connection, int event, uint64_t count, double seconds) -> tuple:
    """Up to ``count`` round trips (0: any number) in up to ``seconds``.

    Returns the seconds taken and the latencies, {bucket: count}, as a load loop does. Raises
    OSError when the other side is gone. The eventfd must block.
    """
    cdef uint8_t message[MESSAGE]
    cdef uint64_t ticks[BATCH]
    cdef uint64_t begin = sb_nanoseconds()
    cdef uint64_t end = begin + <uint64_t>(seconds * 1e9)
    cdef uint64_t started, raised, done = 0
    cdef int i, failed = 0, batch
    histogram = {}
    memset(message, 0, MESSAGE)
    tick_nanoseconds()
    while not failed and (count == 0 or done < count) and sb_nanoseconds() < end:
        batch = BATCH if count == 0 else <int>min(<uint64_t>BATCH, count - done)
        with nogil:
            for i in range(batch):
                started = sb_ticks()
                failed = sb_post(connection, message, MESSAGE)
                if failed:
                    break
                if read(event, &raised, 8) != 8:
                    failed = 5
                    break
                ticks[i] = sb_ticks() - started
        if failed:
            break
        for i in range(batch):
            bucket = histogram_bucket(ticks[i])
            histogram[bucket] = histogram.get(bucket, 0) + 1
        done += batch
        PyErr_CheckSignals()
    if failed:
        raise OSError(failed, "the other side of the ping is gone")
    return (sb_nanoseconds() - begin) / 1e9, histogram
