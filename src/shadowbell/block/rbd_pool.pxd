from shadowbell.block.includes.librbd cimport rados_ioctx_t, rados_t

cdef object check(int result)

cdef class Pool:
    cdef rados_t cluster
    cdef rados_ioctx_t ioctx
