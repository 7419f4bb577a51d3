# What a back end's errno means to a host: an NVMe status, with Do Not Retry only where the very same
# command can't succeed later.

from libc.errno cimport (
    EAGAIN,
    EBADF,
    EDQUOT,
    EFAULT,
    EFBIG,
    EHOSTDOWN,
    EHOSTUNREACH,
    EILSEQ,
    EINTR,
    EINVAL,
    ENODATA,
    ENODEV,
    ENOLINK,
    ENOMEM,
    ENOSPC,
    ENOTCONN,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    EREMOTEIO,
    EROFS,
    ESTALE,
    ETIMEDOUT,
    ECONNABORTED,
    ECONNREFUSED,
    ECONNRESET,
    ENETDOWN,
    ENETUNREACH,
    EPIPE,
    ESHUTDOWN,
)
from libc.stdint cimport uint8_t, uint32_t

from shadowbell.block.backend cimport BLOCK_READ
from shadowbell.dataplane.status cimport (
    CAPACITY_EXCEEDED,
    DATA_TRANSFER_ERROR,
    DO_NOT_RETRY,
    INTERNAL_ERROR,
    INTERNAL_PATH_ERROR,
    NAMESPACE_NOT_READY,
    NAMESPACE_WRITE_PROTECTED,
    UNRECOVERED_READ_ERROR,
    WRITE_FAULT,
)


cdef inline uint32_t status_of_errno(uint8_t op, int error) noexcept nogil:
    """The status of a block request of kind `op` that failed with the errno `error`."""
    if error == EFAULT:
        return DATA_TRANSFER_ERROR  # the host's memory, not the storage
    if error == ENOSPC or error == EDQUOT or error == EFBIG:
        return CAPACITY_EXCEEDED  # until there is room again
    if error == EROFS or error == EPERM:
        return NAMESPACE_WRITE_PROTECTED | DO_NOT_RETRY
    if error == ENODEV or error == ENXIO or error == ESTALE or error == EBADF:
        return NAMESPACE_NOT_READY | DO_NOT_RETRY  # what we have open is gone for good
    if error == EAGAIN or error == ETIMEDOUT:
        return NAMESPACE_NOT_READY  # what it lives on can't be reached now
    if (error == ENOLINK or error == EHOSTDOWN or error == EHOSTUNREACH
            or error == ENETDOWN or error == ENETUNREACH or error == ENOTCONN
            or error == ECONNRESET or error == ECONNREFUSED or error == ECONNABORTED
            or error == EPIPE or error == ESHUTDOWN):
        return INTERNAL_PATH_ERROR  # the storage is there, the way to it isn't
    if error == EINTR or error == ENOMEM:
        return INTERNAL_ERROR
    if error == EINVAL or error == EOPNOTSUPP or error == EREMOTEIO:
        return INTERNAL_ERROR | DO_NOT_RETRY  # refused as it is
    # EIO, ENODATA (a block device's medium error), EILSEQ (its checksum), and what we don't know.
    return ((UNRECOVERED_READ_ERROR if op == BLOCK_READ else WRITE_FAULT)
            | (DO_NOT_RETRY if error == ENODATA or error == EILSEQ else 0))


cdef inline bint is_media_error(uint32_t status) noexcept nogil:
    return status & 0x7FF == UNRECOVERED_READ_ERROR or status & 0x7FF == WRITE_FAULT
