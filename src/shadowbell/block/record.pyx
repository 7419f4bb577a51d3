"""A back end that writes down what happens to another: each write, zeroing, discard and flush.

The log has two entries for each: one before the other back end hears of it, with the data, and one
after it has completed, before the host is told. So what the log says was completed before a flush
began is what that flush must have made stable. `shadowbell.crash` reads it (the format is in its
module `recording`) and makes every state that a power failure could have left.

For tests: a lock is held and memory allocated per request, and each byte is written twice. A log
that can't be written fails the request.
"""

from libc.errno cimport EINVAL, EIO, ENOMEM, errno
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

import os
import struct

from shadowbell.block.backend cimport (
    BLOCK_DONE,
    BLOCK_FLUSH,
    BLOCK_READ,
    BLOCK_WRITE,
    Backend,
    BlockContext,
    BlockRequest,
    BlockState,
)
from shadowbell.dataplane.includes.uring cimport iovec


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, const void *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_mutex_destroy(pthread_mutex_t *)

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **memory, size_t alignment, size_t size)

cdef extern from "<sys/uio.h>" nogil:
    ssize_t writev(int fd, const iovec *iov, int count)

cdef enum:
    PAGE = 4096
    ENDED = 0x80     # in an entry's kind, beside the operation: it is over

cdef packed struct Entry:
    uint64_t time    # ns of CLOCK_MONOTONIC
    uint64_t number  # of the request: its two entries have the same
    uint64_t offset
    uint64_t length  # bytes; data of a write follow the entry of its beginning
    uint8_t kind
    uint8_t flags    # BlockFlag
    uint16_t reserved
    int32_t result   # ENDED: 0 or -errno

cdef struct Recorder:
    BlockState *inner
    int log
    uint64_t next_number
    int broken       # errno of the log
    pthread_mutex_t lock

# A request that is being recorded.
cdef struct Recorded:
    Entry entry
    iovec data       # a copy: the host could change its own while the device reads it


cdef class RecordingBackend(Backend):
    """``inner``, recorded in the open file ``log``; both belong to this from here on.

    ``lba`` is the logical block size in bytes, told to the log's reader.
    """

    cdef Backend inner
    cdef Recorder recorder

    def __init__(self, Backend inner not None, int log, uint32_t lba):
        self.inner = inner
        self.kind = inner.kind
        self.supports_discard = inner.supports_discard
        self.recorder.inner = &inner.state
        self.recorder.log = log
        pthread_mutex_init(&self.recorder.lock, NULL)
        self.state.size = inner.state.size
        self.state.own = &self.recorder
        self.state.submit = record_submit
        self.state.advance = record_advance
        os.write(log, struct.pack("<8sIIQ8x", b"SBRECORD", 1, lba, inner.state.size))

    def provide(self, size):
        raise OSError(EINVAL, "a recorded namespace keeps its size")

    def flush(self):
        """As a flush of the host's; no I/O is running."""
        cdef Entry entry
        entry.offset = entry.length = 0
        entry.kind = BLOCK_FLUSH
        entry.flags = 0
        entry.result = 0
        begin(&self.recorder, &entry, NULL)
        self.inner.flush()
        end(&self.recorder, &entry)
        if self.recorder.broken:
            raise OSError(self.recorder.broken, "can't write the recording")

    def close(self):
        if not self.closed:
            self.closed = True
            self.inner.close()
            os.close(self.recorder.log)

    def __dealloc__(self):
        pthread_mutex_destroy(&self.recorder.lock)


cdef int record_submit(BlockContext *context, BlockRequest *request) noexcept nogil:
    cdef BlockState *outer = request.backend
    cdef Recorder *recorder = <Recorder *> outer.own
    cdef int submitted
    # One that found no room before comes again, and is in the log already.
    if request.op != BLOCK_READ and request.recorded == NULL:
        request.result = record(recorder, request)
        if request.result:
            return BLOCK_DONE
    request.backend = recorder.inner
    submitted = recorder.inner.submit(context, request)
    request.backend = outer
    return over(recorder, request) if submitted == BLOCK_DONE else submitted


cdef int record_advance(BlockContext *context, BlockRequest *request, int res) noexcept nogil:
    cdef BlockState *outer = request.backend
    cdef Recorder *recorder = <Recorder *> outer.own
    cdef int advanced
    request.backend = recorder.inner
    advanced = recorder.inner.advance(context, request, res)
    request.backend = outer
    return over(recorder, request) if advanced == BLOCK_DONE else advanced


cdef int record(Recorder *recorder, BlockRequest *request) noexcept nogil:
    """Copy the data, write the entry of the beginning; 0 or -errno."""
    cdef Recorded *recorded = NULL
    cdef uint8_t *to
    cdef uint32_t i
    # The data behind a page that the rest has to itself: O_DIRECT takes it as it is.
    cdef uint64_t size = request.length if request.op == BLOCK_WRITE else 0
    if posix_memalign(<void **> &recorded, PAGE, PAGE + size):
        return -ENOMEM
    recorded.entry.offset = request.offset
    recorded.entry.length = request.length
    recorded.entry.kind = request.op
    recorded.entry.flags = request.flags
    recorded.entry.result = 0
    recorded.data.iov_base = <uint8_t *> recorded + PAGE
    recorded.data.iov_len = size
    if size:
        to = <uint8_t *> recorded.data.iov_base
        for i in range(request.niov):
            memcpy(to, request.iov[i].iov_base, request.iov[i].iov_len)
            to += request.iov[i].iov_len
    if not begin(recorder, &recorded.entry, &recorded.data):
        free(recorded)
        return -EIO
    if size:
        request.iov = &recorded.data
        request.niov = 1
    request.recorded = recorded
    return 0


cdef int over(Recorder *recorder, BlockRequest *request) noexcept nogil:
    cdef Recorded *recorded = <Recorded *> request.recorded
    if recorded != NULL:
        recorded.entry.result = request.result
        if not end(recorder, &recorded.entry):
            request.result = -EIO
        request.recorded = NULL
        free(recorded)
    return BLOCK_DONE


cdef bint begin(Recorder *recorder, Entry *entry, iovec *data) noexcept nogil:
    cdef bint written
    pthread_mutex_lock(&recorder.lock)
    entry.number = recorder.next_number
    recorder.next_number += 1
    written = append(recorder, entry, data)
    pthread_mutex_unlock(&recorder.lock)
    return written


cdef bint end(Recorder *recorder, Entry *entry) noexcept nogil:
    cdef bint written
    entry.kind |= ENDED
    pthread_mutex_lock(&recorder.lock)
    written = append(recorder, entry, NULL)
    pthread_mutex_unlock(&recorder.lock)
    return written


cdef bint append(Recorder *recorder, Entry *entry, iovec *data) noexcept nogil:
    """Write an entry; False when the log is no longer whole."""
    cdef iovec parts[2]
    cdef timespec now
    cdef ssize_t size = sizeof(Entry)
    if recorder.broken:
        return False
    clock_gettime(CLOCK_MONOTONIC, &now)
    entry.time = <uint64_t> now.tv_sec * 1000000000 + now.tv_nsec
    entry.reserved = 0
    parts[0].iov_base = entry
    parts[0].iov_len = sizeof(Entry)
    if data != NULL:
        parts[1] = data[0]
        size += data.iov_len
    # A write to a file is short only where the next would fail: a full file system, a limit.
    if writev(recorder.log, parts, 2 if data != NULL else 1) != size:
        recorder.broken = errno or EIO
        return False
    return True
