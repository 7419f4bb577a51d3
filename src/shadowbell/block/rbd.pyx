"""Images of a Ceph cluster, by librbd.

Only the owner of the image's exclusive lock writes. An image that was handed over to another server,
or taken by one (then the cluster refuses us), answers every command with "not ready".
"""

from libc.errno cimport ENOENT, ERANGE, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from posix.unistd cimport close as close_fd

import os

from shadowbell.block.backend cimport Backend
from shadowbell.block.includes.librbd cimport (
    RBD_LOCK_MODE_EXCLUSIVE,
    rbd_close,
    rbd_flush,
    rbd_get_size,
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
from shadowbell.block.rbd_pool cimport Pool, check
from shadowbell.block.rbd_requests cimport Image, news, rbd_advance, rbd_submit
from shadowbell.dataplane.includes.cpu cimport load32, store32


cdef extern from "<sys/eventfd.h>":
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK
    int eventfd(unsigned initial, int flags)

cdef enum:
    LONGEST_VALUE = 256        # bytes of the image's metadata that we read
    MOST_OWNERS = 8


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
        # The length is only told when there is too little room: what counts is the final NUL.
        return (<bytes> value).decode(errors="replace")

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
