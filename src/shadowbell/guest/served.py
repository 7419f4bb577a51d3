"""`shadowbell serve` as a child process, and what its ledger says."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

START_TIMEOUT = 15.0


class ServeError(Exception):
    """The server did not start, answer or stop as it should; the message ends with its log."""


@dataclass(frozen=True)
class Ledger:
    """Counts of a controller's I/O queues (the admin queue left out), deleted queues included."""

    commands: int
    doorbells: int  # doorbell register writes that reached the server
    shadow_finds: int  # reads of a doorbell in memory that found work
    interrupts: int

    def __sub__(self, earlier: Ledger) -> Ledger:
        return Ledger(
            self.commands - earlier.commands,
            self.doorbells - earlier.doorbells,
            self.shadow_finds - earlier.shadow_finds,
            self.interrupts - earlier.interrupts,
        )

    @property
    def doorbells_per_command(self) -> float:
        return self.doorbells / max(1, self.commands)

    @property
    def interrupts_per_command(self) -> float:
        return self.interrupts / max(1, self.commands)


class Served:
    """A running server in a folder of its own; `arguments` follow `shadowbell serve`.

    They are given as functions of the folder's files: "{folder}" is replaced by its path.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="shadowbell-serve-"))
        self._arguments = [argument.replace("{folder}", str(self.folder)) for argument in arguments]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Served:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ServeError("the server isn't running")
        return self._process.pid

    @property
    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def socket(self, name: str) -> Path:
        return self.folder / name

    def start(self) -> None:
        """Starts it and waits until it listens."""
        with (self.folder / "log").open("ab") as log:
            before = log.tell()
            self._process = subprocess.Popen(
                [*_end_with_us(), sys.executable, "-m", "shadowbell", "serve", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # the terminal's ^C is ours to pass on
            )
        deadline = time.monotonic() + START_TIMEOUT
        # The arguments for QEMU are printed when every socket listens.
        while "QEMU arguments" not in self.log[before:]:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ServeError(f"the server did not start:\n{self.log[before:]}")
            time.sleep(0.01)

    def check_alive(self) -> None:
        """Raises ServeError when the server has ended."""
        if self._process is None or self._process.poll() is not None:
            raise ServeError(f"the server ended:\n{self.log[-4000:]}")

    def ledger(self, name: str) -> Ledger:
        """The I/O counters of the controller on socket `name`, as they are now."""
        path = self.folder / f"{name}.ledger"
        path.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            self.check_alive()
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                return _ledger(json.loads(path.read_text()))
            time.sleep(0.01)
        raise ServeError(f"no ledger after SIGUSR1:\n{self.log[-4000:]}")

    def stop(self, timeout: float = 20) -> int:
        """Ends it as a service manager does (SIGTERM); its exit code."""
        if self._process is None:
            raise ServeError("the server isn't running")
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise ServeError(f"the server did not end:\n{self.log[-4000:]}") from error

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None
        shutil.rmtree(self.folder, ignore_errors=True)


def _end_with_us() -> list[str]:
    """A prefix that ends the server when this process dies without a chance to."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM"] if setpriv else []


def _ledger(queues: list[dict[str, Any]]) -> Ledger:
    own = [queue for queue in queues if queue["qid"] != 0]
    return Ledger(
        commands=sum(sum(queue["commands"].values()) for queue in own),
        doorbells=sum(queue["doorbells"] for queue in own),
        shadow_finds=sum(queue["shadow_finds"] for queue in own),
        interrupts=sum(queue["interrupts"] for queue in own),
    )
