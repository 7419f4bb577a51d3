# libnbd(3), as far as the NBD back end uses it.

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from "<libnbd.h>" nogil:
    struct nbd_handle:
        pass
    ctypedef struct nbd_completion_callback:
        int (*callback)(void *user_data, int *error) noexcept
        void *user_data
        void (*free)(void *user_data) noexcept

    enum:
        LIBNBD_CMD_FLAG_FUA
        LIBNBD_CMD_FLAG_NO_HOLE
        LIBNBD_AIO_DIRECTION_READ
        LIBNBD_AIO_DIRECTION_WRITE
        LIBNBD_SIZE_MINIMUM
        LIBNBD_SIZE_PREFERRED
        LIBNBD_SIZE_MAXIMUM

    nbd_handle *nbd_create()
    void nbd_close(nbd_handle *h)
    const char *nbd_get_error()
    int nbd_get_errno()
    int nbd_set_uri_allow_local_file(nbd_handle *h, bint allow)
    int nbd_set_request_structured_replies(nbd_handle *h, bint request)
    int nbd_get_structured_replies_negotiated(nbd_handle *h)
    int nbd_get_tls_negotiated(nbd_handle *h)

    int nbd_aio_connect_uri(nbd_handle *h, const char *uri)
    int nbd_aio_disconnect(nbd_handle *h, uint32_t flags)
    bint nbd_aio_is_connecting(nbd_handle *h)
    bint nbd_aio_is_ready(nbd_handle *h)
    bint nbd_aio_is_dead(nbd_handle *h)
    bint nbd_aio_is_closed(nbd_handle *h)
    int nbd_poll(nbd_handle *h, int timeout)

    int64_t nbd_get_size(nbd_handle *h)
    int64_t nbd_get_block_size(nbd_handle *h, int size_type)
    int nbd_is_read_only(nbd_handle *h)
    int nbd_can_flush(nbd_handle *h)
    int nbd_can_fua(nbd_handle *h)
    int nbd_can_trim(nbd_handle *h)
    int nbd_can_zero(nbd_handle *h)
    int nbd_can_multi_conn(nbd_handle *h)

    int nbd_aio_get_fd(nbd_handle *h)
    unsigned nbd_aio_get_direction(nbd_handle *h)
    int nbd_aio_notify_read(nbd_handle *h)
    int nbd_aio_notify_write(nbd_handle *h)

    int64_t nbd_aio_pread(nbd_handle *h, void *buf, size_t count, uint64_t offset,
                          nbd_completion_callback callback, uint32_t flags)
    int64_t nbd_aio_pwrite(nbd_handle *h, const void *buf, size_t count, uint64_t offset,
                           nbd_completion_callback callback, uint32_t flags)
    int64_t nbd_aio_flush(nbd_handle *h, nbd_completion_callback callback, uint32_t flags)
    int64_t nbd_aio_trim(nbd_handle *h, uint64_t count, uint64_t offset,
                         nbd_completion_callback callback, uint32_t flags)
    int64_t nbd_aio_zero(nbd_handle *h, uint64_t count, uint64_t offset,
                         nbd_completion_callback callback, uint32_t flags)
    int nbd_aio_command_completed(nbd_handle *h, uint64_t cookie)
