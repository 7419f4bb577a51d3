# NBD in an IOThread: what the data plane and the control plane call (see nbd_connection.pxd).

from libc.stdint cimport uint32_t

from shadowbell.block.backend cimport BlockContext, BlockRequest, BlockState
from shadowbell.block.includes.libnbd cimport nbd_handle
from shadowbell.block.nbd_connection cimport Connection, Disk

cdef int nbd_submit(BlockContext *context, BlockRequest *request) noexcept nogil
cdef int nbd_advance(BlockContext *context, BlockRequest *request, int res) noexcept nogil
cdef int nbd_enter(BlockContext *context, BlockState *state) noexcept nogil
cdef bint nbd_leave(BlockContext *context, BlockState *state) noexcept nogil
cdef void nbd_urge(BlockContext *context, BlockState *state, bint urgent) noexcept nogil
cdef void hand_over(Connection *connection, nbd_handle *handle) noexcept nogil
cdef bint flush_from_outside(Disk *disk, BlockState *state) noexcept nogil
