"""The thread that makes an NBD disk's connections: it may block, so that IOThreads needn't."""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shadowbell.block.nbd import Handle, NbdBackend

CONNECT_SECONDS = 30.0
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 5.0

_log = logging.getLogger("shadowbell")


class Connector:
    """Answers `backend.wanting` until `stop`. `connect` makes one connection or raises OSError.

    `name` is what the log calls the server. Attempts that fail are repeated, after pauses that
    double from 20 ms to 5 s.
    """

    def __init__(
        self,
        backend: NbdBackend,
        connect: Callable[[Callable[[], bool]], Handle],
        name: str,
    ) -> None:
        self._backend = backend
        self._connect = connect
        self._name = name
        self._stopping = os.eventfd(0, os.EFD_CLOEXEC)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="nbd-connector", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, in the middle of an attempt if need be."""
        self._stopped = True
        os.eventfd_write(self._stopping, 1)
        self._thread.join()
        os.close(self._stopping)

    def _run(self) -> None:
        wanted_fd = self._backend.wanted_fd
        while not self._stopped:
            select.select([wanted_fd, self._stopping], [], [])
            if self._stopped:
                return
            os.eventfd_read(wanted_fd)
            for index in self._backend.wanting():
                handle = self._persist()
                if handle is None:
                    return
                self._backend.give(index, handle)

    def _persist(self) -> Handle | None:
        """A connection, however long it takes; None when stopped."""
        pause = FIRST_PAUSE
        failures = 0
        while not self._stopped:
            try:
                handle = self._connect(lambda: not self._stopped)
                self._check(handle)
            except OSError as error:
                if self._stopped:
                    return None
                failures += 1
                if failures == 1:
                    _log.warning("%s is gone, trying again: %s", self._name, error)
                select.select([self._stopping], [], [], pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            if failures:
                _log.info("%s is back", self._name)
            return handle
        return None

    def _check(self, handle: Handle) -> None:
        """Raise OSError when this isn't the disk that it was."""
        if handle.read_only and not self._backend.read_only:
            raise OSError("the server now offers the disk read-only")
        if self._backend.multi and not handle.multi:
            raise OSError("the server no longer allows several connections")
        known = self._backend.measure()
        if handle.size != known:
            _log.warning("%s now has %d bytes, not %d", self._name, handle.size, known)
