"""A child process in a folder of its own: started apart from the terminal, ended gently."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self


class ChildError(Exception):
    """A child process did not start, answer or end as it should."""


class Child:
    """A process that is started on entry and ended on exit, with its ``folder``.

    Subclasses say in ``start`` what runs. What it writes to stdout and stderr is kept (``log``).
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix=f"shadowbell-{name}-"))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it can be used; ChildError when it doesn't get there."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def log(self) -> str:
        """All it wrote so far, in all the times it was started."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def exit_code(self) -> int | None:
        """None while it runs, and before it was started."""
        return self._process.poll() if self._process is not None else None

    def close(self) -> None:
        """Ends it, gently first, and removes its folder."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def _launch(self, command: Sequence[str | Path]) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_end_with_us(), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # the terminal's ^C is ours to pass on
            )

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ChildError(f"{self.name} isn't running")
        return self._process

    def _wait_until(self, ready: Callable[[], bool], timeout: float) -> bool:
        """False when it ended, or the time did, before it was ready."""
        deadline = time.monotonic() + timeout
        while not ready():
            if self._running().poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


def _end_with_us() -> list[str]:
    """A prefix that ends the child when this process dies without a chance to."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM"] if setpriv else []
