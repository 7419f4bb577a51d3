"""What a server costs while the controllers attached to it do nothing."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shadowbell.bench.process import cpu_seconds, pin, pinned, resident_bytes, sleeps
from shadowbell.bench.sweep import Progress
from shadowbell.bench.target import serve
from shadowbell.driver import Doorbells, Host
from shadowbell.errors import UserError

SETTLE: Final = 1.0  # seconds for what still moves after attaching
DESCRIPTORS: Final = 16  # of the driver, for one controller at most


@dataclass(frozen=True)
class Idle:
    """``cpu`` seconds and ``sleeps`` of the server's threads in ``seconds``."""

    controllers: int
    seconds: float
    cpu: float
    sleeps: int
    resident: int

    @property
    def cpu_percent(self) -> float:
        """Of one processor."""
        return self.cpu / self.seconds * 100


def measure_idle(
    counts: Sequence[int],
    *,
    way: Doorbells,
    poll: str,
    seconds: float,
    cpus: tuple[int, int] | None,
    progress: Progress,
) -> list[Idle]:
    """Serve so many null controllers, attach to each, do one read on each, and watch.

    Raises UserError when that many can't be served or attached.
    """
    _allow_descriptors(max(counts) * DESCRIPTORS)
    return [_measure(count, way, poll, seconds, cpus, progress) for count in counts]


def _measure(
    count: int,
    way: Doorbells,
    poll: str,
    seconds: float,
    cpus: tuple[int, int] | None,
    progress: Progress,
) -> Idle:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shadowbell-idle-")))
        config = folder / "idle.toml"
        config.write_text(_config(count, way, poll))
        progress(f"serving {count} controllers")
        served = stack.enter_context(serve(["--config", str(config)]))
        if cpus is not None:
            stack.enter_context(pinned(cpus[0]))
            pin(served.pid, cpus[1])
        for number in range(count):
            progress(f"attaching controller {number + 1} of {count}")
            host = Host.connect(folder / f"{number}.sock", doorbells=way, arena_size=2 << 20)
            stack.callback(host.detach, shut_down=False)
            queue = host.create_queue_pair(64, interrupts=True)
            queue.read(1, 0, 1)
        progress(f"watching {count} idle controllers for {seconds:g} s")
        time.sleep(SETTLE)
        begin, cpu, slept = time.monotonic(), cpu_seconds(served.pid), sleeps(served.pid)
        time.sleep(seconds)
        elapsed = time.monotonic() - begin
        return Idle(
            count,
            elapsed,
            cpu_seconds(served.pid) - cpu,
            sleeps(served.pid) - slept,
            resident_bytes(served.pid),
        )


def _config(count: int, way: Doorbells, poll: str) -> str:
    window = '"busy"' if poll == "busy" else poll
    lines = [] if poll == "adaptive" else [f"poll_max_us = {window}"]
    for number in range(count):
        lines += ["[[controller]]", f'socket = "{number}.sock"', 'namespace = ["null:1G"]']
        if way == "mapped":
            lines.append('doorbells = "mapped"')
    return "\n".join(lines) + "\n"


def _allow_descriptors(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 64
    if wanted > hard:
        raise UserError(f"so many controllers need {wanted} descriptors: raise `ulimit -n {hard}`")
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
