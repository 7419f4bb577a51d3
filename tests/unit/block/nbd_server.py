"""NBD servers to test against: nbdkit, killed and started again as a test likes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from shadowbell.block.images import find_program


def need(*programs: str) -> None:
    """Skip where the NBD client or a program is missing, which CI has."""
    missing = [program for program in programs if find_program(program) is None]
    try:
        import shadowbell.block.nbd  # noqa: F401
    except ImportError:
        missing.append("libnbd")
    if missing and os.environ.get("CI"):
        pytest.fail(f"CI needs {', '.join(missing)}")
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: tools/setup dev installs it")


class NbdServer:
    """`nbdkit ARGUMENTS` on a unix socket, or a loopback port; the folder's log has its words."""

    def __init__(self, folder: Path, *arguments: str, tcp: bool = False) -> None:
        need("nbdkit")
        self._port = _free_port() if tcp else None
        self.socket = folder / "nbd.sock"
        self.log = folder / "nbd.log"
        self.uri = f"nbd://127.0.0.1:{self._port}/" if tcp else f"nbd+unix:///?socket={self.socket}"
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self, *arguments: str) -> None:
        """Start it, again if need be, with other arguments if there are any."""
        program = shutil.which("nbdkit")
        assert program is not None
        command = [program, "-f", "-U", str(self.socket)]
        if self._port is not None:
            command = [program, "-f", "-i", "127.0.0.1", "-p", str(self._port)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *(arguments or self._arguments)], stdout=log, stderr=log
            )
        end = time.monotonic() + 10
        while not self._listening():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, "nbdkit doesn't listen"
            time.sleep(0.005)

    def _listening(self) -> bool:
        family = socket.AF_UNIX if self._port is None else socket.AF_INET
        with contextlib.suppress(OSError), socket.socket(family) as probe:
            probe.connect(str(self.socket) if self._port is None else ("127.0.0.1", self._port))
            return True
        return False

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def freeze(self) -> None:
        """Stop it, and wait until all of its threads have: until then they answer."""
        self.signal(signal.SIGSTOP)
        assert self._process is not None
        os.waitpid(self._process.pid, os.WUNTRACED)

    def kill(self) -> None:
        """As a crash: nothing is said to the clients."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
            with contextlib.suppress(FileNotFoundError):
                self.socket.unlink()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
