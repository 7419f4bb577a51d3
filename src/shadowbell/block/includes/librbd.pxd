from libc.stdint cimport uint64_t

from shadowbell.dataplane.includes.uring cimport iovec

cdef extern from "<rados/librados.h>" nogil:
    ctypedef void *rados_t
    ctypedef void *rados_ioctx_t
    int rados_create(rados_t *cluster, const char *id)
    int rados_conf_read_file(rados_t cluster, const char *path)
    int rados_conf_parse_env(rados_t cluster, const char *var)
    int rados_conf_set(rados_t cluster, const char *option, const char *value)
    int rados_connect(rados_t cluster)
    void rados_shutdown(rados_t cluster)
    int rados_ioctx_create(rados_t cluster, const char *pool, rados_ioctx_t *ioctx)
    void rados_ioctx_set_namespace(rados_ioctx_t ioctx, const char *name)
    void rados_ioctx_destroy(rados_ioctx_t ioctx)

cdef extern from "<rbd/librbd.h>" nogil:
    ctypedef void *rbd_image_t
    ctypedef void *rbd_completion_t
    ctypedef void (*rbd_callback_t)(rbd_completion_t completion, void *arg) noexcept
    ctypedef void (*rbd_update_callback_t)(void *arg) noexcept
    ctypedef enum rbd_lock_mode_t:
        RBD_LOCK_MODE_EXCLUSIVE
    enum:
        RBD_WRITE_ZEROES_FLAG_THICK_PROVISION

    int rbd_open(rados_ioctx_t ioctx, const char *name, rbd_image_t *image, const char *snapshot)
    int rbd_open_read_only(rados_ioctx_t ioctx, const char *name, rbd_image_t *image,
                           const char *snapshot)
    int rbd_close(rbd_image_t image)
    int rbd_get_size(rbd_image_t image, uint64_t *size)
    int rbd_resize(rbd_image_t image, uint64_t size)
    int rbd_flush(rbd_image_t image)
    int rbd_update_watch(rbd_image_t image, uint64_t *handle, rbd_update_callback_t callback,
                         void *arg)
    int rbd_update_unwatch(rbd_image_t image, uint64_t handle)

    int rbd_lock_acquire(rbd_image_t image, rbd_lock_mode_t mode)
    int rbd_lock_release(rbd_image_t image)
    int rbd_lock_get_owners(rbd_image_t image, rbd_lock_mode_t *mode, char **owners, size_t *count)
    void rbd_lock_get_owners_cleanup(char **owners, size_t count)
    int rbd_lock_break(rbd_image_t image, rbd_lock_mode_t mode, const char *owner)
    int rbd_is_exclusive_lock_owner(rbd_image_t image, int *is_owner)

    int rbd_metadata_get(rbd_image_t image, const char *key, char *value, size_t *length)
    int rbd_metadata_set(rbd_image_t image, const char *key, const char *value)
    int rbd_metadata_remove(rbd_image_t image, const char *key)

    int rbd_aio_create_completion(void *arg, rbd_callback_t callback, rbd_completion_t *completion)
    ssize_t rbd_aio_get_return_value(rbd_completion_t completion)
    void rbd_aio_release(rbd_completion_t completion)
    int rbd_aio_readv(rbd_image_t image, const iovec *iov, int count, uint64_t offset,
                      rbd_completion_t completion)
    int rbd_aio_writev(rbd_image_t image, const iovec *iov, int count, uint64_t offset,
                       rbd_completion_t completion)
    int rbd_aio_write_zeroes(rbd_image_t image, uint64_t offset, size_t length,
                             rbd_completion_t completion, int zero_flags, int op_flags)
    int rbd_aio_discard(rbd_image_t image, uint64_t offset, uint64_t length,
                        rbd_completion_t completion)
    int rbd_aio_flush(rbd_image_t image, rbd_completion_t completion)
