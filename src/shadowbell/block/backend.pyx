"""The base of all block back ends."""

from libc.stdint cimport uint64_t

from shadowbell.dataplane.live cimport count_live


cdef class Backend:
    """A disk's bytes: what a namespace reads from and writes to.

    A subclass fills ``state`` with its two functions and calls nothing of Python's in them. Both run
    on an IOThread: ``submit`` starts a request, ``advance`` is given each completion of the ring
    that belongs to it. A request ends when either returns ``BLOCK_DONE``, or by
    ``context.complete``: what doesn't go through io_uring waits in the IOThread as ``sources.pxd``
    says.
    """

    def __cinit__(self):
        self.state.fd = self.state.file_slot = -1
        # What an earlier process wrote and didn't flush may still be volatile.
        self.state.generation = self.state.written = 1
        self.state.memory_align = self.state.length_align = 1
        self.discard_zeroes = True
        count_live(b"backends", 1)

    def __dealloc__(self):
        count_live(b"backends", -1)

    @property
    def size(self):
        return self.state.size

    def measure(self):
        """Bytes that lie behind it now, which may have changed; ``OSError``."""
        return self.state.size

    def provide(self, uint64_t size):
        """Make what lies behind it ``size`` bytes, to be taken up by ``resize``; ``OSError``."""

    def resize(self, uint64_t size):
        """Be ``size`` bytes from now on; called with no I/O running. ``OSError``."""
        self.state.size = size

    def flush(self):
        """Make all completed writes stable; called by the control plane with no I/O running."""

    def close(self):
        """Give back the memory, the descriptor and the lock."""
        self.closed = True
