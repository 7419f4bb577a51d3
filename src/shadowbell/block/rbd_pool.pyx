"""A connection to a Ceph cluster, by librados."""

import os

from shadowbell.block.includes.librbd cimport (
    rados_conf_parse_env,
    rados_conf_read_file,
    rados_conf_set,
    rados_connect,
    rados_create,
    rados_ioctx_create,
    rados_ioctx_destroy,
    rados_ioctx_set_namespace,
    rados_shutdown,
    rados_t,
)


cdef object check(int result):
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


cdef class Pool:
    """A connection to a cluster, and a pool in it. ``OSError`` says what failed."""

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
