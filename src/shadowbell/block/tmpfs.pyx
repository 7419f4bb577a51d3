"""Files that are in memory already: on tmpfs and ramfs.

Their reads and writes are a copy, which io_uring would hand to a worker thread each time, because
these file systems can't promise not to wait: that costs several times the copy. So the IOThread
makes the system call itself. It waits only when pages must come back from swap, as it would for its
own memory. What may take longer, discarding and zeroing, goes through the ring as for any file.
"""

from libc.errno cimport EINTR, EIO, errno
from libc.stdint cimport uint64_t

from shadowbell.block.backend cimport (
    BLOCK_DONE,
    BLOCK_FLUSH,
    BLOCK_READ,
    BLOCK_WRITE,
    BlockContext,
    BlockRequest,
)
from shadowbell.block.file cimport FileBackend, file_submit, skip
from shadowbell.dataplane.includes.uring cimport iovec


cdef extern from "<sys/uio.h>" nogil:
    ssize_t preadv(int fd, const iovec *iov, int count, uint64_t offset)
    ssize_t pwritev(int fd, const iovec *iov, int count, uint64_t offset)

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *buffer, size_t size, uint64_t offset)
    ssize_t pwrite(int fd, const void *buffer, size_t size, uint64_t offset)


cdef class TmpfsBackend(FileBackend):
    """An open image on tmpfs or ramfs; see `FileBackend`."""

    def __init__(self, int fd, size, *, read_only):
        super().__init__(fd, size, memory_align=1, length_align=1, read_only=read_only)
        self.state.submit = tmpfs_submit


cdef int tmpfs_submit(BlockContext *context, BlockRequest *request) noexcept nogil:
    cdef ssize_t moved
    request.result = 0
    if request.op == BLOCK_FLUSH:
        return BLOCK_DONE  # nothing more stable than memory is there
    if request.op != BLOCK_READ and request.op != BLOCK_WRITE:
        return file_submit(context, request)
    request.done = 0
    while request.done < request.length:
        moved = move(request)
        if moved > 0:
            request.done += <uint64_t> moved
            if request.done < request.length:
                skip(request, <uint64_t> moved)
        elif moved == 0:
            request.result = -EIO  # the image was cut short
            break
        elif errno != EINTR:
            request.result = -errno
            break
    return BLOCK_DONE


cdef inline ssize_t move(BlockRequest *request) noexcept nogil:
    cdef iovec *iov = request.iov
    cdef uint64_t offset = request.offset + request.done
    cdef int fd = request.backend.fd
    if request.op == BLOCK_READ:
        if request.niov == 1:
            return pread(fd, iov.iov_base, iov.iov_len, offset)
        return preadv(fd, iov, <int> request.niov, offset)
    if request.niov == 1:
        return pwrite(fd, iov.iov_base, iov.iov_len, offset)
    return pwritev(fd, iov, <int> request.niov, offset)
