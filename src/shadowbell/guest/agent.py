"""Runs commands in the guest, through a virtio-serial port that its init reads.

One line each way, binary data as base64, so that no output can break the framing:

    guest, once a boot:  ``hello 0 base64(kernel release)``
    host:                ``ID SECONDS base64(shell script)``
    guest:               ``ID EXIT_CODE base64(stdout and stderr)``
"""

from __future__ import annotations

import base64
import binascii
import socket
import time

GRACE = 20.0  # what the guest may take beyond a script's own time limit: it is slow when emulated


class AgentError(Exception):
    """The guest did not answer in time, or QEMU closed the port."""


class Agent:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""
        self._last_id = 0

    def wait_hello(self, timeout: float) -> str:
        """Waits until the guest has booted; its kernel's release."""
        return self._reply("hello", time.monotonic() + timeout)[1].strip()

    def run(self, script: str, timeout: float) -> tuple[int, str]:
        """Runs a shell script: exit code and output. It is killed at the timeout (seconds)."""
        self._last_id += 1
        encoded = base64.b64encode(script.encode()).decode()
        deadline = time.monotonic() + timeout + GRACE
        self._connection.settimeout(GRACE)
        try:
            self._connection.sendall(
                f"{self._last_id} {max(1, round(timeout))} {encoded}\n".encode()
            )
        except OSError as error:
            raise AgentError("the guest is gone") from error
        return self._reply(str(self._last_id), deadline)

    def close(self) -> None:
        self._connection.close()

    def _reply(self, wanted: str, deadline: float) -> tuple[int, str]:
        while True:
            fields = self._line(deadline).split(b" ")
            # Anything else is the late answer of a command that was given up, or cut by a reboot.
            if len(fields) == 3 and fields[0] == wanted.encode():
                try:
                    return int(fields[1]), base64.b64decode(fields[2]).decode(errors="replace")
                except (ValueError, binascii.Error):
                    continue

    def _line(self, deadline: float) -> bytes:
        while b"\n" not in self._buffer:
            self._connection.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._connection.recv(65536)
            except TimeoutError as error:
                raise AgentError("the guest did not answer in time") from error
            except OSError as error:
                raise AgentError("the guest is gone") from error
            if not data:
                raise AgentError("the guest is gone")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line
