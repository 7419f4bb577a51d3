"""Images of a Ceph cluster, by librbd.

Data goes straight between the guest's memory and librbd. Its completions arrive in threads of
librbd's and are posted from there to the request's IOThread (sources.pxd), where all else is done.

FUA is a write and then a flush. What is discarded reads as zeros whatever its alignment, so it is
zeroed thinly where it isn't whole granules, which is all that librbd's discard touches.

Only the owner of the image's exclusive lock writes. An image that was handed over to another server,
or taken by one (then the cluster refuses us), answers every command with "not ready".
"""

from libc.errno cimport EAGAIN, EDQUOT, EIO, ENOENT, ENOSPC, ERANGE, EROFS, ESHUTDOWN, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.unistd cimport close as close_fd

import os

from shadowbell.block.backend cimport (
    BLOCK_DISCARD,
    BLOCK_DONE,
    BLOCK_FLUSH,
    BLOCK_FUA,
    BLOCK_PENDING,
    BLOCK_READ,
    BLOCK_UNMAP,
    BLOCK_WRITE,
    BLOCK_ZERO,
    Backend,
    BlockContext,
    BlockRequest,
    Note,
)
from shadowbell.block.includes.librbd cimport (
    RBD_LOCK_MODE_EXCLUSIVE,
    RBD_WRITE_ZEROES_FLAG_THICK_PROVISION,
    rados_conf_parse_env,
    rados_conf_read_file,
    rados_conf_set,
    rados_connect,
    rados_create,
    rados_ioctx_create,
    rados_ioctx_destroy,
    rados_ioctx_set_namespace,
    rados_ioctx_t,
    rados_shutdown,
    rados_t,
    rbd_aio_create_completion,
    rbd_aio_discard,
    rbd_aio_flush,
    rbd_aio_get_return_value,
    rbd_aio_readv,
    rbd_aio_release,
    rbd_aio_write_zeroes,
    rbd_aio_writev,
    rbd_close,
    rbd_completion_t,
    rbd_flush,
    rbd_get_size,
    rbd_image_t,
    rbd_is_exclusive_lock_owner,
    rbd_lock_acquire,
    rbd_lock_break,
    rbd_lock_get_owners,
    rbd_lock_get_owners_cleanup,
    rbd_lock_mode_t,
    rbd_lock_release,
    rbd_metadata_get,
    rbd_metadata_remove,
    rbd_metadata_set,
    rbd_open,
    rbd_open_read_only,
    rbd_resize,
    rbd_update_unwatch,
    rbd_update_watch,
)
from shadowbell.block.sources cimport post
from shadowbell.dataplane.includes.cpu cimport load32, store32


cdef extern from "<sys/eventfd.h>" nogil:
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK
    int eventfd(unsigned initial, int flags)
    int eventfd_write(int fd, uint64_t value)

cdef enum Stage:
    MOVING
    SYNCING                    # the flush behind a FUA

cdef enum:
    GRANULE = 65536            # librbd's discard leaves alone what isn't whole ones of these
    LONGEST_VALUE = 256        # bytes of the image's metadata that we read
    MOST_OWNERS = 8

# What the IOThreads and librbd's threads share. Requests hold on to it while they are under way.
cdef struct Image:
    rbd_image_t handle
    bint read_only
    uint32_t away              # not ours to use any more: every request gets EAGAIN
    int news_fd                # for the watcher: something about the image has changed


# --- requests ---------------------------------------------------------------------------------------

cdef int rbd_submit(BlockContext *context, BlockRequest *request) noexcept nogil:
    request.context = context
    request.stage = MOVING
    return start(<Image *> request.backend.own, request)


cdef int rbd_advance(BlockContext *context, BlockRequest *request, int res) noexcept nogil:
    """Nothing of ours goes through the ring."""
    request.result = -EIO
    return BLOCK_DONE


cdef int start(Image *image, BlockRequest *request) noexcept nogil:
    cdef rbd_completion_t completion
    cdef int error
    if load32(&image.away):
        request.result = -EAGAIN
        return BLOCK_DONE
    error = rbd_aio_create_completion(request, landed, &completion)
    if error < 0:
        request.result = error
        return BLOCK_DONE
    if request.op == BLOCK_FLUSH or request.stage == SYNCING:
        error = rbd_aio_flush(image.handle, completion)
    elif request.op == BLOCK_READ:
        error = rbd_aio_readv(
            image.handle, request.iov, request.niov, request.offset, completion)
    elif request.op == BLOCK_WRITE:
        error = rbd_aio_writev(
            image.handle, request.iov, request.niov, request.offset, completion)
    elif request.op == BLOCK_DISCARD and (request.offset | request.length) & (GRANULE - 1) == 0:
        error = rbd_aio_discard(image.handle, request.offset, request.length, completion)
    else:
        error = rbd_aio_write_zeroes(
            image.handle, request.offset, request.length, completion,
            0 if request.op == BLOCK_DISCARD or request.flags & BLOCK_UNMAP
            else RBD_WRITE_ZEROES_FLAG_THICK_PROVISION, 0)
    if error < 0:
        rbd_aio_release(completion)
        request.result = meaning(image, error)
        return BLOCK_DONE
    return BLOCK_PENDING


cdef void landed(rbd_completion_t completion, void *arg) noexcept nogil:
    """In a thread of librbd's."""
    cdef BlockRequest *request = <BlockRequest *> arg
    cdef ssize_t result = rbd_aio_get_return_value(completion)
    rbd_aio_release(completion)
    if request.op == BLOCK_READ and result >= 0 and <uint64_t> result < request.length:
        result = -EIO  # the image ends before the namespace does: it was made smaller
    request.result = <int> min(result, <ssize_t> 0)
    request.note.take = go_on
    post(request.context, &request.note)


cdef void go_on(BlockContext *context, Note *note) noexcept nogil:
    """Back on the IOThread."""
    cdef BlockRequest *request = <BlockRequest *> note
    cdef Image *image = <Image *> request.backend.own
    cdef int result = request.result
    if result < 0:
        result = meaning(image, result)
    elif request.flags & BLOCK_FUA and request.stage == MOVING and (
            request.op == BLOCK_WRITE or request.op == BLOCK_ZERO):
        request.stage = SYNCING
        if start(image, request) == BLOCK_PENDING:
            return
        result = request.result
    context.complete(context, request, result)


cdef int meaning(Image *image, int error) noexcept nogil:
    """What an error of librbd's is to the host."""
    if error == -ESHUTDOWN or error == -EROFS and not image.read_only:
        # The cluster has shut us out, or another client has the lock: the disk is elsewhere now.
        store32(&image.away, 1)
        eventfd_write(image.news_fd, 1)
        return -EAGAIN
    return -ENOSPC if error == -EDQUOT else error


cdef void news(void *arg) noexcept nogil:
    """In a thread of librbd's: the image's header has changed."""
    eventfd_write((<Image *> arg).news_fd, 1)


# --- the cluster ------------------------------------------------------------------------------------

cdef object check(int result):
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


cdef class Pool:
    """A connection to a cluster, and a pool in it. ``OSError`` says what failed."""

    cdef rados_t cluster
    cdef rados_ioctx_t ioctx

    def __init__(self, user):
        name = os.fsencode(user)
        cdef const char *c_name = name
        check(rados_create(&self.cluster, c_name))

    def __dealloc__(self):
        self.shut()

    def read_file(self, path):
        cdef const char *c_path = NULL
        if path is not None:
            name = os.fsencode(path)
            c_path = name
        check(rados_conf_read_file(self.cluster, c_path))
        check(rados_conf_parse_env(self.cluster, NULL))

    def set_option(self, key, value):
        key, value = os.fsencode(key), os.fsencode(value)
        check(rados_conf_set(self.cluster, key, value))

    def connect(self):
        cdef int result
        with nogil:
            result = rados_connect(self.cluster)
        check(result)

    def enter(self, pool, namespace):
        cdef int result
        name, inner = os.fsencode(pool), os.fsencode(namespace)
        cdef const char *c_name = name
        with nogil:
            result = rados_ioctx_create(self.cluster, c_name, &self.ioctx)
        check(result)
        rados_ioctx_set_namespace(self.ioctx, inner)

    def shut(self):
        cdef rados_t cluster = self.cluster
        if self.ioctx != NULL:
            rados_ioctx_destroy(self.ioctx)
            self.ioctx = NULL
        if cluster != NULL:
            self.cluster = NULL
            with nogil:
                rados_shutdown(cluster)


cdef class RbdBackend(Backend):
    """An open image of ``pool``, which is the back end's from here on."""

    cdef Pool pool
    cdef Image *image
    cdef uint64_t watch
    cdef bint watched
    cdef public object watcher

    def __init__(self, Pool pool not None, image, snapshot, *, read_only):
        cdef bytes name = os.fsencode(image)
        cdef bytes point = os.fsencode(snapshot or "")
        cdef const char *c_name = name
        cdef const char *c_point = NULL
        cdef bint write = not read_only
        cdef int result
        self.kind = "rbd"
        self.read_only = read_only
        self.supports_discard = True
        self.pool = pool
        self.image = <Image *> calloc(1, sizeof(Image))
        if self.image == NULL:
            raise MemoryError
        self.image.read_only = read_only
        self.image.news_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.image.news_fd < 0:
            raise OSError(errno, "can't make an eventfd")
        if snapshot:
            c_point = point
        with nogil:
            if write:
                result = rbd_open(pool.ioctx, c_name, &self.image.handle, c_point)
            else:
                result = rbd_open_read_only(pool.ioctx, c_name, &self.image.handle, c_point)
        check(result)
        try:
            self.state.size = self.measure()
            with nogil:
                result = rbd_update_watch(self.image.handle, &self.watch, news, self.image)
            check(result)
            self.watched = True
        except BaseException:
            self.shut()
            raise
        self.state.own = self.image
        self.state.submit = rbd_submit
        self.state.advance = rbd_advance

    def __dealloc__(self):
        if self.image != NULL:
            self.shut()
            if self.image.news_fd >= 0:
                close_fd(self.image.news_fd)
            free(self.image)

    cdef void shut(self):
        cdef Image *image = self.image
        cdef uint64_t watch = self.watch
        cdef bint watched = self.watched
        if image.handle != NULL:
            self.watched = False
            with nogil:
                if watched:
                    rbd_update_unwatch(image.handle, watch)
                rbd_close(image.handle)
            image.handle = NULL
        if self.pool is not None:
            self.pool.shut()

    @property
    def news_fd(self):
        return self.image.news_fd

    @property
    def away(self):
        return bool(load32(&self.image.away))

    def measure(self):
        cdef uint64_t size = 0
        cdef int result
        with nogil:
            result = rbd_get_size(self.image.handle, &size)
        check(result)
        return size

    def provide(self, uint64_t size):
        cdef int result
        if size < self.measure():
            raise OSError(ERANGE, "a smaller size loses data: shrink the image yourself")
        with nogil:
            result = rbd_resize(self.image.handle, size)
        check(result)

    def flush(self):
        cdef int result
        if self.read_only or self.away:
            return
        with nogil:
            result = rbd_flush(self.image.handle)
        check(result)

    # --- the lock -----------------------------------------------------------------------------------

    def owners(self):
        """Who has the image's exclusive lock."""
        cdef rbd_lock_mode_t mode
        cdef char *found[MOST_OWNERS]
        cdef size_t count = MOST_OWNERS
        cdef int result
        with nogil:
            result = rbd_lock_get_owners(self.image.handle, &mode, found, &count)
        if result == -ENOENT:
            return []
        check(result)
        names = [(<bytes> found[i]).decode(errors="replace") for i in range(count)]
        rbd_lock_get_owners_cleanup(found, count)
        return names

    def owned(self):
        cdef int owner = 0
        cdef int result
        with nogil:
            result = rbd_is_exclusive_lock_owner(self.image.handle, &owner)
        check(result)
        return bool(owner)

    def lock(self):
        cdef int result
        with nogil:
            result = rbd_lock_acquire(self.image.handle, RBD_LOCK_MODE_EXCLUSIVE)
        check(result)

    def give_up(self):
        cdef int result
        store32(&self.image.away, 1)
        with nogil:
            result = rbd_flush(self.image.handle)
            if result == 0:
                result = rbd_lock_release(self.image.handle)
        check(result)

    def break_lock(self, owner):
        cdef int result
        name = os.fsencode(owner)
        cdef const char *c_name = name
        with nogil:
            result = rbd_lock_break(self.image.handle, RBD_LOCK_MODE_EXCLUSIVE, c_name)
        check(result)

    def read_note(self, key):
        cdef char value[LONGEST_VALUE]
        cdef size_t length = LONGEST_VALUE
        cdef int result
        name = os.fsencode(key)
        cdef const char *c_name = name
        with nogil:
            result = rbd_metadata_get(self.image.handle, c_name, value, &length)
        if result == -ENOENT:
            return None
        check(result)
        return (<bytes> value[:length]).rstrip(b"\0").decode(errors="replace")

    def write_note(self, key, value):
        cdef int result
        name, text = os.fsencode(key), os.fsencode(value or "")
        cdef const char *c_name = name
        cdef const char *c_text = text
        cdef bint remove = value is None
        with nogil:
            if remove:
                result = rbd_metadata_remove(self.image.handle, c_name)
            else:
                result = rbd_metadata_set(self.image.handle, c_name, c_text)
        if not (remove and result == -ENOENT):
            check(result)

    def close(self):
        if not self.closed:
            self.closed = True
            if self.watcher is not None:
                self.watcher.stop()
                self.watcher = None
            self.shut()
