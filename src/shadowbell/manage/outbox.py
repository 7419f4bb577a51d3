"""Replies on their way to a client that may be slow to read them."""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections import deque

LIMIT = 1 << 20
"""Bytes that may wait; a client that lets more pile up isn't reading."""


class SlowClient(Exception):
    """More than LIMIT bytes of replies wait."""


class Outbox:
    """Sends without blocking, in order, one sendmsg a reply; what doesn't fit waits."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._waiting: deque[tuple[memoryview, list[int]]] = deque()
        self._size = 0

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def send(self, reply: bytes, fds: tuple[int, ...]) -> None:
        """Send now or keep. Descriptors stay the caller's. Raises OSError, SlowClient."""
        sent = 0 if self._waiting else self._transmit(reply, fds)
        if sent == len(reply):
            return
        # The descriptors went with the first byte; until then we need our own.
        kept = [] if sent else [os.dup(fd) for fd in fds]
        self._waiting.append((memoryview(reply)[sent:], kept))
        self._size += len(reply) - sent
        if self._size > LIMIT:
            raise SlowClient

    def flush(self) -> None:
        """Send what the socket takes now. Raises OSError."""
        while self._waiting:
            data, fds = self._waiting[0]
            sent = self._transmit(data, fds)
            if not sent:
                return
            self._size -= sent
            self._close(fds)
            if sent < len(data):
                self._waiting[0] = (data[sent:], [])
                return
            self._waiting.popleft()

    def close(self) -> None:
        for _, fds in self._waiting:
            self._close(fds)
        self._waiting.clear()
        self._size = 0

    def _transmit(self, data: bytes | memoryview, fds: tuple[int, ...] | list[int]) -> int:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with contextlib.suppress(BlockingIOError):
            return self._client.sendmsg([data], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return 0

    @staticmethod
    def _close(fds: list[int]) -> None:
        while fds:
            os.close(fds.pop())
