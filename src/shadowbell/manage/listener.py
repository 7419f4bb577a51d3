"""A listening unix socket and its file: who may take the path, who cleans it up."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from shadowbell.errors import UserError

BACKLOG = 16
CONVENTIONAL_NAME = "cntrl"
"""SPDK names a directory and opens this in it."""


class Listener:
    """Listens at `path`, a path or DIR/cntrl (then DIR is made). Raises UserError.

    A socket file that nobody listens at is replaced; a live one is in use. `mode`: the file's
    permissions, else what the umask leaves.
    """

    def __init__(self, path: str, *, mode: int | None = None) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._prepare()
            if mode is not None:
                os.fchmod(self._socket.fileno(), mode)  # what bind() gives the file
            self._socket.bind(path)
            self._identity = _identity(path)
            self._socket.listen(BACKLOG)
            self._socket.setblocking(False)
        except OSError as error:
            self._discard()
            raise UserError(f"can't listen at {path}: {error.strerror or error}") from error
        except UserError:
            self._discard()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self) -> socket.socket | None:
        """The next client, non-blocking; None when it has gone again.

        Raises OSError when the process is out of descriptors; that client is turned away, or the
        listening socket would stay readable for good.
        """
        try:
            client, _ = self._socket.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away()
                raise
            return None
        client.setblocking(False)
        return client

    def close(self) -> None:
        """Stop listening and remove the socket's file, unless someone else has replaced it."""
        if self._socket.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            if _identity(self.path) == self._identity:
                os.unlink(self.path)
        self._discard()

    def _discard(self) -> None:
        self._socket.close()
        os.close(self._reserve)

    def _turn_away(self) -> None:
        os.close(self._reserve)
        with contextlib.suppress(OSError):
            self._socket.accept()[0].close()
        self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _prepare(self) -> None:
        folder = os.path.dirname(self.path) or "."
        if os.path.basename(self.path) == CONVENTIONAL_NAME:
            os.makedirs(folder, exist_ok=True)
        if not os.path.isdir(folder):
            raise UserError(f"can't listen at {self.path}: make the directory {folder} first")
        try:
            mode = os.stat(self.path).st_mode
        except FileNotFoundError:
            return
        if stat.S_ISDIR(mode):
            hint = os.path.join(self.path, CONVENTIONAL_NAME)
            raise UserError(f"{self.path} is a directory: use {hint}")
        if not stat.S_ISSOCK(mode):
            raise UserError(f"{self.path} exists and is no socket: remove it or use another path")
        if _is_live(self.path):
            raise UserError(f"socket {self.path} is in use by another process: use another path")
        os.unlink(self.path)


def _is_live(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:  # its backlog is full
            return True
    return True


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
