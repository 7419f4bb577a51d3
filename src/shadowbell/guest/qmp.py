"""A small synchronous client of QEMU's machine protocol: JSON lines over a unix socket."""

from __future__ import annotations

import json
import socket
import time
from collections import deque
from typing import Any


class QmpError(Exception):
    """QEMU refused a command, or went away."""


class Qmp:
    """Commands and events of one QEMU; events that arrive in between are kept for wait_event()."""

    def __init__(self, connection: socket.socket, *, timeout: float = 30) -> None:
        self._connection = connection
        self._timeout = timeout
        self._buffer = b""
        self._events: deque[dict[str, Any]] = deque(maxlen=1000)
        self._receive(time.monotonic() + timeout)  # the greeting
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Runs a command and returns its value; raises QmpError with QEMU's own words."""
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        deadline = time.monotonic() + self._timeout
        try:
            self._connection.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise QmpError(f"{command}: QEMU is gone") from error
        while True:
            message = self._receive(deadline)
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise QmpError(f"{command}: {message['error'].get('desc')}")
            self._events.append(message)

    def wait_event(self, name: str, timeout: float, **data: Any) -> dict[str, Any]:
        """The next event of that name whose data has these values; earlier events are dropped."""
        deadline = time.monotonic() + timeout
        while True:
            event = self._events.popleft() if self._events else self._receive(deadline)
            values = event.get("data", {})
            if event.get("event") == name and all(values.get(k) == v for k, v in data.items()):
                return event

    def drop_events(self) -> None:
        """Forgets what happened so far, so that wait_event() sees only what follows."""
        self.execute("query-status")
        self._events.clear()

    def close(self) -> None:
        self._connection.close()

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            self._connection.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._connection.recv(65536)
            except TimeoutError as error:
                raise QmpError("QEMU did not answer in time") from error
            except OSError as error:
                raise QmpError("QEMU is gone") from error
            if not data:
                raise QmpError("QEMU is gone")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message
