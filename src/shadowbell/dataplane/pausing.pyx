"""Having every IOThread let go of an engine, and take it up again as it then is."""

import contextlib

from shadowbell.dataplane.iothread cimport IOThread
from shadowbell.dataplane.layout cimport OP_PAUSE, OP_RESUME, OWNER_THREAD


cdef class Pausing:
    """The pauses of one engine, which may be nested."""

    def __cinit__(self, list threads not None):
        self.threads = threads

    @contextlib.contextmanager
    def paused(self):
        """Inside, no IOThread touches the engine's queues and no command is under way."""
        cdef IOThread thread
        threads = self.threads if self.serving() else []
        self.depth += 1
        try:
            if self.depth == 1:
                for thread in threads:
                    thread.post(OP_PAUSE, self.state)
            yield
        finally:
            self.depth -= 1
            if self.depth == 0 and (threads or self.serving()):
                for thread in self.threads:
                    thread.post(OP_RESUME, self.state)

    cdef bint serving(self):
        cdef int i
        for i in range(self.state.max_queues + 1):
            if self.state.sqs[i] != NULL and self.state.sqs[i].thread != NULL:
                return True
        return self.state.channel != NULL and self.state.channel.owner == OWNER_THREAD
