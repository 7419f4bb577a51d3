"""Replies on their way to a client that may be slow to read them."""

from __future__ import annotations

import array
import contextlib
import os
import socket


class Outbox:
    """Sends without blocking, one sendmsg a reply; what doesn't fit waits.

    At most one reply waits: the client isn't served before it has taken it. So a client that
    doesn't read costs a buffer, holds up only itself, and no reply overtakes another, not even
    those that an IOThread sends.
    """

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._rest = memoryview(b"")
        self._fds: list[int] = []

    @property
    def waiting(self) -> bool:
        return bool(self._rest)

    def send(self, reply: bytes, fds: tuple[int, ...]) -> None:
        """Send now or keep. Descriptors stay the caller's. Raises OSError."""
        assert not self.waiting
        sent = self._transmit(reply, fds)
        self._rest = memoryview(reply)[sent:]
        # Descriptors go with the first byte; until then we need some that nobody closes.
        if not sent:
            self._fds = [os.dup(fd) for fd in fds]

    def flush(self) -> None:
        """Send what the socket takes now. Raises OSError."""
        sent = self._transmit(self._rest, self._fds)
        self._rest = self._rest[sent:]
        if sent:
            self.close_fds()

    def close_fds(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def _transmit(self, data: bytes | memoryview, fds: tuple[int, ...] | list[int]) -> int:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with contextlib.suppress(BlockingIOError):
            return self._client.sendmsg([data], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return 0
