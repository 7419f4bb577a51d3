"""A disk behind an NBD server: what the control plane does with it.

The commands are nbd_thread.pyx's; the connector (nbd_connector.py) makes the connections.
"""

from libc.errno cimport EINVAL, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.unistd cimport close as close_fd

import os
import select
import threading
import time

from shadowbell.block.backend cimport BOUNCE_SIZE, MAX_CONTEXTS, Backend
from shadowbell.block.includes.libnbd cimport (
    LIBNBD_SIZE_MAXIMUM,
    LIBNBD_SIZE_MINIMUM,
    LIBNBD_SIZE_PREFERRED,
    nbd_aio_command_completed,
    nbd_aio_connect_uri,
    nbd_aio_disconnect,
    nbd_aio_flush,
    nbd_aio_is_connecting,
    nbd_aio_is_ready,
    nbd_can_flush,
    nbd_can_fua,
    nbd_can_multi_conn,
    nbd_can_trim,
    nbd_can_zero,
    nbd_close,
    nbd_completion_callback,
    nbd_create,
    nbd_get_block_size,
    nbd_get_errno,
    nbd_get_error,
    nbd_get_size,
    nbd_handle,
    nbd_is_read_only,
    nbd_poll,
    nbd_set_request_structured_replies,
    nbd_set_uri_allow_local_file,
)
from shadowbell.block.nbd_connection cimport Connection, Disk
from shadowbell.block.nbd_thread cimport (
    flush_from_outside,
    hand_over,
    nbd_advance,
    nbd_enter,
    nbd_leave,
    nbd_submit,
    nbd_urge,
)
from shadowbell.dataplane.includes.cpu cimport exchange32
from shadowbell.dataplane.live cimport count_live


cdef extern from "<sys/eventfd.h>":
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK
    int eventfd(unsigned initial, int flags)

cdef enum:
    # Without a limit of the server's own: what every server takes (the protocol's 32 MiB) is more
    # than a command of ours moves.
    LARGEST = 1 << 25
    FLUSH_SECONDS = 30
    LOOK_MS = 100              # how often a connect looks whether it is still wanted


cdef object last_error():
    """What libnbd said last, without the name of its function."""
    cdef const char *text = nbd_get_error()
    message = "unknown error" if text == NULL else (<bytes> text).decode(errors="replace")
    return ConnectionError(nbd_get_errno(), message.partition(": ")[2] or message)


cdef class Handle:
    """A connection to an NBD server, made and looked at by the control plane."""

    cdef nbd_handle *raw

    def __cinit__(self):
        self.raw = nbd_create()
        if self.raw == NULL:
            raise MemoryError
        nbd_set_uri_allow_local_file(self.raw, True)

    def __dealloc__(self):
        if self.raw != NULL:
            nbd_close(self.raw)

    def connect(self, uri, wanted, seconds):
        cdef bytes text = os.fsencode(uri)
        cdef const char *c_uri = text
        cdef int failed
        end = time.monotonic() + seconds
        # Over a network they save the zeros of sparse disks; in one machine they only cost.
        nbd_set_request_structured_replies(self.raw, b"+unix:" not in text)
        with nogil:
            failed = nbd_aio_connect_uri(self.raw, c_uri)
        if failed:
            raise last_error()
        while nbd_aio_is_connecting(self.raw):
            if not wanted():
                raise InterruptedError("no longer wanted")
            if time.monotonic() > end:
                raise TimeoutError(f"no answer within {seconds} seconds")
            with nogil:
                failed = nbd_poll(self.raw, LOOK_MS)
            if failed < 0:
                raise last_error()
        if not nbd_aio_is_ready(self.raw):
            raise last_error()

    @property
    def size(self):
        return nbd_get_size(self.raw)

    @property
    def read_only(self):
        return nbd_is_read_only(self.raw) == 1

    @property
    def multi(self):
        return nbd_can_multi_conn(self.raw) == 1

    @property
    def minimum_block(self):
        return max(nbd_get_block_size(self.raw, LIBNBD_SIZE_MINIMUM), 1)

    @property
    def preferred_block(self):
        return max(nbd_get_block_size(self.raw, LIBNBD_SIZE_PREFERRED), 0)


cdef class NbdBackend(Backend):
    """An NBD export. ``handle`` is its first connection; ``timeout`` in seconds, 0 for none.

    Whoever makes one answers ``wanting``: connections that an IOThread lacks, made and given.
    """

    cdef Disk *disk
    cdef uint64_t found_size    # of the server's disk, when a connection was last made
    cdef object lock            # one flush at a time
    cdef bint flushing          # a flush that was given up may still come to its end
    cdef public object connector
    cdef public object server   # the child that serves the image, or None

    def __init__(self, Handle handle not None, *, read_only, timeout):
        self.disk = <Disk *> calloc(1, sizeof(Disk))
        if self.disk == NULL:
            raise MemoryError
        self.disk.wanted_fd = self.disk.control_fd = -1
        self.disk.connections = <Connection *> calloc(MAX_CONTEXTS, sizeof(Connection))
        self.disk.wanted_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.disk.control_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.disk.connections == NULL:
            raise MemoryError
        if self.disk.wanted_fd < 0 or self.disk.control_fd < 0:
            raise OSError(errno, "can't make an eventfd")
        self.lock = threading.Lock()
        self.kind = "nbd"
        self.read_only = read_only
        self.disk.multi = handle.multi
        self.disk.timeout = int(timeout * 1e9)
        self.state.own = self.disk
        self.state.submit = nbd_submit
        self.state.advance = nbd_advance
        self.state.enter = nbd_enter
        self.state.leave = nbd_leave
        self.state.urge = nbd_urge
        self.learn(handle)
        self.state.size = self.found_size
        self.supports_discard = self.disk.can_trim
        self.discard_zeroes = False  # the protocol doesn't say what a trimmed range reads as
        self.disk.spares[0] = handle.raw
        self.disk.spare_count = 1
        handle.raw = NULL

    def __dealloc__(self):
        if self.disk == NULL:
            return
        self.drop_connections()
        for fd in (self.disk.wanted_fd, self.disk.control_fd):
            if fd >= 0:
                close_fd(fd)
        free(self.disk.connections)
        free(self.disk)

    cdef void drop_connections(self):
        """Those that no IOThread has."""
        cdef uint32_t i
        for i in range(self.disk.spare_count):
            nbd_aio_disconnect(self.disk.spares[i], 0)  # a good-bye, if it can be said at once
            nbd_close(self.disk.spares[i])
        self.disk.spare_count = 0
        if self.disk.connections != NULL:
            for i in range(MAX_CONTEXTS):
                if self.disk.connections[i].fresh != NULL:
                    nbd_close(self.disk.connections[i].fresh)
                    self.disk.connections[i].fresh = NULL

    cdef void learn(self, Handle handle):
        """What the server is like now."""
        cdef nbd_handle *h = handle.raw
        largest = nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM)
        if not 4096 <= largest <= LARGEST:
            largest = LARGEST
        self.disk.largest = largest & ~4095
        self.disk.can_flush = nbd_can_flush(h) == 1
        self.disk.can_fua = nbd_can_fua(h) == 1
        self.disk.can_trim = nbd_can_trim(h) == 1
        self.disk.can_zero = nbd_can_zero(h) == 1
        self.found_size = handle.size

    @property
    def multi(self):
        return bool(self.disk.multi)

    @property
    def wanted_fd(self):
        return self.disk.wanted_fd

    def wanting(self):
        cdef uint32_t i
        return [i for i in range(MAX_CONTEXTS) if exchange32(&self.disk.connections[i].wanted, 0)]

    def give(self, uint32_t index, Handle handle not None):
        cdef nbd_handle *raw = handle.raw
        self.learn(handle)
        handle.raw = NULL
        hand_over(&self.disk.connections[index], raw)

    def measure(self):
        return self.found_size

    def provide(self, uint64_t size):
        if size != self.found_size:
            raise OSError(EINVAL, "the NBD server has to resize the disk")

    def flush(self):
        if self.disk.can_flush and not self.read_only:
            with self.lock:
                self.flush_alone()

    cdef flush_alone(self):
        if self.flushing:
            try:
                os.eventfd_read(self.disk.control_fd)
            except BlockingIOError:
                raise TimeoutError("the NBD server hasn't ended an earlier flush") from None
            self.flushing = False
        if flush_from_outside(self.disk, &self.state):
            self.flushing = True
            if not select.select([self.disk.control_fd], [], [], FLUSH_SECONDS)[0]:
                raise TimeoutError("the NBD server doesn't answer")
            os.eventfd_read(self.disk.control_fd)
            self.flushing = False
            if self.disk.control.result:
                raise OSError(-self.disk.control.result, os.strerror(-self.disk.control.result))
        elif self.disk.spare_count:
            self.flush_spare(self.disk.spares[0])
        else:
            raise ConnectionError("the NBD server is gone")

    cdef flush_spare(self, nbd_handle *handle):
        cdef nbd_completion_callback nothing
        nothing.callback = NULL
        nothing.user_data = NULL
        nothing.free = NULL
        end = time.monotonic() + FLUSH_SECONDS
        cookie = nbd_aio_flush(handle, nothing, 0)
        if cookie < 0:
            raise last_error()
        while True:
            done = nbd_aio_command_completed(handle, cookie)
            if done < 0:
                raise last_error()
            if done:
                return
            if time.monotonic() > end:
                raise TimeoutError("the NBD server doesn't answer")
            if nbd_poll(handle, LOOK_MS) < 0:
                raise last_error()

    def close(self):
        if not self.closed:
            self.closed = True
            if self.connector is not None:
                self.connector.stop()
                self.connector = None
            self.drop_connections()
            if self.server is not None:
                self.server.close()
