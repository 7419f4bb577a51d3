from collections.abc import Sequence

from shadowbell.dataplane.iothread import IOThread

class Pins:
    """Has the rings of IOThreads know the clients' memory as registered buffers.

    Engines that are given it tell it of their memory. A thread of its own does the work: nobody
    waits for it, and what can't be registered is told in the log, once.
    """

    def __init__(self, iothreads: Sequence[IOThread]) -> None: ...
    def close(self) -> None:
        """End the thread; every engine must have been closed, and the IOThreads still run."""
