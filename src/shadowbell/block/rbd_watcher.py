"""What a server does with the news of an image that it writes: hand it over when asked."""

from __future__ import annotations

import logging
import os
import select
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shadowbell.block.rbd import RbdBackend

REQUEST = "shadowbell.takeover"
"""The entry of the image's metadata by which another server asks for it."""

log = logging.getLogger("shadowbell")


class Watcher(threading.Thread):
    """A thread of its own, since librbd's calls wait for the cluster. `stop` before closing.

    `token`: what we ask with ourselves; that may arrive when the image is ours already.
    """

    def __init__(self, backend: RbdBackend, name: str, token: str) -> None:
        super().__init__(name="rbd-watcher", daemon=True)
        self._backend = backend
        self._name = name
        self._token = token
        self._ending = os.eventfd(0, os.EFD_CLOEXEC)

    def stop(self) -> None:
        """End the thread, once what it is at has been done."""
        os.eventfd_write(self._ending, 1)
        self.join()
        os.close(self._ending)

    def run(self) -> None:
        news = self._backend.news_fd
        while not self._backend.away:
            ready, _, _ = select.select([news, self._ending], [], [])
            if self._ending in ready:
                return
            os.eventfd_read(news)
            try:
                self._look()
            except OSError as error:
                log.warning("%s: can't look at the image: %s", self._name, error.strerror)

    def _look(self) -> None:
        if self._backend.away:
            log.error("%s was taken by another server: commands get not ready", self._name)
            return
        taker = self._backend.read_note(REQUEST)
        if taker is None or taker == self._token:
            return
        log.info("%s is asked for by %s: handing it over", self._name, taker)
        self._backend.give_up()
        log.info("%s is handed over: commands get not ready from now on", self._name)
