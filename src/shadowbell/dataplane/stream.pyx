"""The control plane's end of the client's socket: every message that is no doorbell write.

channel.pyx says who owns the socket when.
"""

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free

import os

from shadowbell.dataplane.channel cimport PARSED_BROKEN, PARSED_MESSAGE, receive, take_doorbells
from shadowbell.dataplane.includes.cpu cimport load32, store32
from shadowbell.dataplane.iothread cimport IOThread
from shadowbell.dataplane.layout cimport (
    OP_CHANNEL_CLOSE,
    OP_CHANNEL_OPEN,
    OWNER_CONTROL,
    OWNER_THREAD,
    Channel,
)
from shadowbell.dataplane.live cimport count_live


cdef class Stream:
    """``thread`` reads the socket while it is an IOThread's. See engine.pyi for the methods."""

    def __cinit__(self, IOThread thread not None):
        self.thread = thread

    cdef int open(self, int fd) except -1:
        cdef Channel *channel
        if self.state.channel != NULL:
            raise RuntimeError("the engine has a client already")
        channel = <Channel *> calloc(1, sizeof(Channel))
        if channel == NULL:
            raise MemoryError
        channel.fd = fd
        channel.owner = OWNER_THREAD
        channel.engine = self.state
        channel.thread = &self.thread.state
        self.state.channel = channel
        try:
            self.thread.post(OP_CHANNEL_OPEN, self.state)
        except BaseException:
            self.state.channel = NULL
            free(channel)
            raise
        count_live(b"channels", 1)
        return 0

    cdef object next_message(self):
        cdef Channel *channel = self.state.channel
        cdef uint32_t size = 0
        cdef int parsed
        if channel == NULL or load32(&channel.owner) != OWNER_CONTROL:
            return None
        while True:
            parsed = take_doorbells(NULL, channel, &size)
            if parsed == PARSED_BROKEN:
                raise ValueError("the vfio-user stream holds no message where one must begin")
            if parsed == PARSED_MESSAGE:
                return self.take_message(channel, size)
            if channel.error == 0 and receive(channel) == 0:
                return None
            if channel.error < 0:
                raise EOFError("the client closed its socket")
            if channel.error:
                raise EOFError(f"the client's socket failed: {os.strerror(channel.error)}")

    cdef tuple take_message(self, Channel *channel, uint32_t size):
        cdef uint32_t end = channel.start + size
        fds = []
        if channel.fd_count and channel.start < channel.fd_mark <= end:
            fds = [channel.fds[i] for i in range(channel.fd_count)]
            channel.fd_count = 0
        message = (<const char *> channel.buffer)[channel.start:end]
        channel.start = end
        return message, fds

    cdef int resume(self) except -1:
        cdef Channel *channel = self.state.channel
        if channel != NULL and load32(&channel.owner) == OWNER_CONTROL:
            store32(&channel.waiting, 0)
            store32(&channel.owner, OWNER_THREAD)
            self.thread.post(OP_CHANNEL_OPEN, self.state)
        return 0

    cdef int close(self) except -1:
        cdef Channel *channel = self.state.channel
        if channel == NULL:
            return 0
        self.thread.post(OP_CHANNEL_CLOSE, self.state)
        self.state.channel = NULL
        for i in range(channel.fd_count):
            os.close(channel.fds[i])
        free(channel)
        count_live(b"channels", -1)
        return 0
