"""`shadowbell serve` as a child process, and what its ledger says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .child import Child, ChildError

START_TIMEOUT = 15.0
SERVE = (sys.executable, "-m", "shadowbell", "serve")


class ServeError(ChildError):
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


class Served(Child):
    """A running server in a folder of its own; `arguments` follow `shadowbell serve`,
    or another `program` that serves as it does.

    They are given as functions of the folder's files: "{folder}" is replaced by its path.
    """

    def __init__(self, arguments: Sequence[str], program: Sequence[str] = SERVE) -> None:
        super().__init__("serve")
        self._program = program
        self._arguments = [argument.replace("{folder}", str(self.folder)) for argument in arguments]

    def socket(self, name: str) -> Path:
        return self.folder / name

    def start(self) -> None:
        """Starts it and waits until it listens."""
        before = len(self.log)
        self._launch([*self._program, *self._arguments])
        # The arguments for QEMU are printed when every socket listens.
        if not self._wait_until(lambda: "QEMU arguments" in self.log[before:], START_TIMEOUT):
            raise ServeError(f"the server did not start:\n{self.log[before:]}")

    def check_alive(self) -> None:
        """Raises ServeError when the server has ended."""
        if self._running().poll() is not None:
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
        process = self._running()
        process.terminate()
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise ServeError(f"the server did not end:\n{self.log[-4000:]}") from error

    def kill(self) -> None:
        """Ends it as kill -9 does; `start` begins again."""
        process = self._running()
        process.kill()
        process.wait()


def _ledger(queues: list[dict[str, Any]]) -> Ledger:
    own = [queue for queue in queues if queue["qid"] != 0]
    return Ledger(
        commands=sum(sum(queue["commands"].values()) for queue in own),
        doorbells=sum(queue["doorbells"] for queue in own),
        shadow_finds=sum(queue["shadow_finds"] for queue in own),
        interrupts=sum(queue["interrupts"] for queue in own),
    )
