"""What the demo does with a served disk: write, verify, and count."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shadowbell.driver import (
    Doorbells,
    Host,
    Load,
    LoadSpec,
    LoadStats,
    Pattern,
    QueuePair,
    Verifier,
)

DISK: Final = 1
MEMORY: Final = 2
CHUNK: Final = 128 << 10
SPARE_SECONDS: Final = 4.0  # the longest that writing (and reading) the disk may take

Tick = Callable[[float], None]
"""Called with the part of a step that is done, 0 to 1."""


@dataclass(frozen=True)
class Way:
    """A way to ring doorbells: options of `shadowbell serve`, and the driver's."""

    name: str
    doorbells: Doorbells
    serve: tuple[str, ...]


WAYS: Final = (
    Way("trapped", "trap", ("--no-dbbuf",)),
    Way("shadow", "shadow", ()),
    Way("mapped", "mapped", ("--doorbells", "mapped", "--no-dbbuf")),
)


@dataclass(frozen=True)
class Cost:
    """A measured load, and the server's CPU seconds for it."""

    stats: LoadStats
    cpu: float

    @property
    def cpu_percent(self) -> float:
        """Of one core."""
        return self.cpu / self.stats.seconds * 100 if self.stats.seconds else 0.0

    @property
    def cpu_us_per_io(self) -> float:
        """Server CPU microseconds per I/O."""
        return self.cpu * 1e6 / self.stats.ios if self.stats.ios else 0.0


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, from ``/proc/PID/stat`` (in clock ticks)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_watched(load: Load, tick: Tick, *, seconds: float, ios: int = 0) -> LoadStats:
    """Run a load in a thread of its own, while this one reports progress and takes ^C."""
    done: list[LoadStats] = []
    worker = threading.Thread(target=lambda: done.append(load.run(seconds=seconds, ios=ios)))
    begin = time.monotonic()
    worker.start()
    try:
        while worker.is_alive():
            worker.join(0.1)
            tick(min(1.0, (time.monotonic() - begin) / seconds))
    except BaseException:
        load.stop()
        worker.join()
        raise
    return done[0]


def fill_and_check(
    host: Host, queue: QueuePair, verifier: Verifier, tick: Tick
) -> tuple[LoadStats, LoadStats]:
    """Write the disk with stamped blocks, flush, read all of it back: both counters."""
    namespace = host.namespaces[DISK]
    ios = namespace.blocks * namespace.lba_size // CHUNK

    def step(pattern: Pattern, done: float) -> LoadStats:
        spec = LoadSpec(pattern=pattern, block_size=CHUNK, depth=8, nsid=DISK, sleep=True)
        load = Load(host, [queue], spec, verifier=verifier)
        seconds = SPARE_SECONDS
        return run_watched(load, lambda part: tick(done + part / 2), seconds=seconds, ios=ios)

    written = step("write", 0)
    queue.flush(DISK)
    return written, step("read", 0.5)


def measure(host: Host, queue: QueuePair, pid: int, depth: int, seconds: float, tick: Tick) -> Cost:
    """Random 4 KiB reads of the memory namespace, the driver asleep between interrupts."""
    spec = LoadSpec(pattern="randread", depth=depth, nsid=MEMORY, sleep=True, seed=depth)
    load = Load(host, [queue], spec)
    before = cpu_seconds(pid)
    stats = run_watched(load, tick, seconds=seconds)
    return Cost(stats, cpu_seconds(pid) - before)
