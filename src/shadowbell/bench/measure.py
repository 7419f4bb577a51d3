"""One measurement: a load on an attached host, and what it cost both sides."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, get_args

from shadowbell.bench.process import Disturbance, cpu_seconds
from shadowbell.bench.target import Attached
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
from shadowbell.driver.histogram import histogram_floor, tick_nanoseconds
from shadowbell.driver.memory import HUGE
from shadowbell.errors import UserError

PATTERNS: Final[tuple[Pattern, ...]] = get_args(Pattern)
WARM_SECONDS: Final = 0.2  # for caches, and for what a server learns of its load
FILL_BLOCK: Final = 128 << 10
FILL_DEPTH: Final = 8
NSID: Final = 1
# Queues as drivers make them: a ring nearly full at the load's depth has its EventIdx passed
# once a lap (dataplane/doorbells.pxd), which isn't what the depth is measured for.
SHORTEST_QUEUE: Final = 256
ENTRIES_BY_DEPTH: Final = 4


@dataclass(frozen=True, kw_only=True)
class Point:
    """What is measured at once; sizes in bytes, ``rate`` in I/Os a second (0: flat out).

    ``flush_every``: writes to a Flush, as LoadSpec has it (0: none).
    """

    way: Doorbells = "auto"
    poll: str = "adaptive"
    pattern: Pattern = "randread"
    mix: float = 50.0  # per cent of writes, for randrw
    block_size: int = 4096
    depth: int = 1  # of each queue
    queues: int = 1
    rate: float = 0.0
    flush_every: int = 0
    interrupts: bool = False
    compete: bool = False  # with a busy process on the server's processor


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A point's counters. CPU in seconds; ``server_cpu`` None when its process isn't known.

    ``others``: how busy the machine's other processes were, 1.0 being one processor.
    """

    target: str
    point: Point
    run: int
    stats: LoadStats
    server_cpu: float | None
    driver_cpu: float
    others: float
    mapped: bool = False  # the doorbell page
    shadowed: bool = False

    @property
    def server_percent(self) -> float | None:
        """Server CPU, per cent of one processor."""
        if self.server_cpu is None or not self.stats.seconds:
            return None
        return self.server_cpu / self.stats.seconds * 100

    @property
    def server_us_per_io(self) -> float | None:
        """Server CPU microseconds per I/O."""
        if self.server_cpu is None or not self.stats.ios:
            return None
        return self.server_cpu * 1e6 / self.stats.ios


def latencies_us(histogram: Mapping[int, int]) -> list[tuple[float, int]]:
    """A latency histogram: (middle of the bucket in microseconds, commands), ascending."""
    tick = tick_nanoseconds() / 1000
    return [
        ((histogram_floor(bucket) + histogram_floor(bucket + 1)) / 2 * tick, count)
        for bucket, count in sorted(histogram.items())
    ]


def arena_bytes(points: Sequence[Point]) -> int:
    """How much memory the driver needs for any of the points, rings and PRP lists included."""
    data = max(point.queues * point.depth * (point.block_size + 8192) for point in points)
    rings = max(point.queues for point in points) * (512 << 10)
    return max(16 << 20, data + rings + FILL_DEPTH * (FILL_BLOCK + 8192) + HUGE)


class Bench:
    """Measures points on one attached host. ``size`` (bytes, None: all) bounds the range.

    With ``verify`` the range is written, stamped, and every read checked.
    Raises UserError when the controller can't do what the points ask for.
    """

    def __init__(
        self,
        name: str,
        attached: Attached,
        points: Sequence[Point],
        *,
        size: int | None = None,
        verify: bool = False,
        fill: bool = False,
    ) -> None:
        self.name = name
        self.attached = attached
        host = attached.host
        if NSID not in host.namespaces:
            raise UserError(f"{name} has no namespace {NSID}: serve one")
        self.lba_size = host.lba_size(NSID)
        whole = host.namespaces[NSID].blocks
        self._blocks = whole if size is None else min(whole, size // self.lba_size)
        wanted = max(point.queues for point in points)
        if wanted > host.max_queues:
            raise UserError(f"{name} has {host.max_queues} I/O queues: use --queues up to that")
        depth = max(point.depth for point in points)
        limit = host.registers.capabilities.mqes + 1
        if depth >= limit:
            raise UserError(f"{name} has queues of {limit}: use a --depth below that")
        entries = min(limit, max(SHORTEST_QUEUE, ENTRIES_BY_DEPTH * depth))
        sleeping = any(point.interrupts for point in points)
        if sleeping and host.vectors < 2:
            raise UserError(f"{name} raises no interrupts: leave --interrupts out")
        self._queues = _make_queues(host, wanted, entries, sleeping)
        self._verifier = Verifier(self._blocks, self.lba_size) if verify else None
        if fill or verify:
            self._fill()

    def _fill(self) -> None:
        size = min(FILL_BLOCK, self._blocks * self.lba_size)
        ios = self._blocks * self.lba_size // size
        spec = LoadSpec(pattern="write", block_size=size, depth=FILL_DEPTH, length=self._blocks)
        self._check(self._run(spec, self._queues[:1], 0.0, ios=ios))

    def measure(
        self, point: Point, run: int, seconds: float, beside: Sequence[int] = ()
    ) -> Measured:
        """Measure a point once. ``beside``: processes that belong to the measurement too.

        Raises UserError when the target fails.
        """
        spec = LoadSpec(
            pattern=point.pattern,
            block_size=point.block_size,
            depth=point.depth,
            write_percent=point.mix,
            length=self._blocks,
            seed=run + 1,
            sleep=point.interrupts,
            rate=point.rate,
            flush_every=point.flush_every,
        )
        queues = self._queues[: point.queues]
        self._check(self._run(spec, queues, min(WARM_SECONDS, seconds)))
        pid = self.attached.pid
        disturbance = Disturbance([*beside, *([pid] if pid else [])])
        server = cpu_seconds(pid) if pid else 0.0
        driver = time.process_time()
        stats = self._run(spec, queues, seconds)
        return Measured(
            target=self.name,
            point=point,
            run=run,
            stats=self._check(stats),
            server_cpu=cpu_seconds(pid) - server if pid else None,
            driver_cpu=time.process_time() - driver,
            others=disturbance.others(),
            mapped=stats.stores > 0,
            shadowed=self.attached.host.shadowed,
        )

    def _run(
        self, spec: LoadSpec, queues: Sequence[QueuePair], seconds: float, ios: int = 0
    ) -> LoadStats:
        try:
            load = Load(self.attached.host, queues, spec, verifier=self._verifier)
        except ValueError as error:
            raise UserError(f"{self.name}: {error}") from error
        return _run_interruptibly(load, seconds, ios)

    def _check(self, stats: LoadStats) -> LoadStats:
        if stats.mismatches:
            where = f"the first in LBA {stats.first_mismatch}"
            raise UserError(f"{self.name}: {stats.mismatches} wrong reads, {where}")
        if not stats.clean:
            raise UserError(
                f"{self.name}: {stats.errors} commands failed (status {stats.first_error:#x}), "
                f"{stats.lost} lost, {stats.violations} impossible completions"
                + (": the server is gone" if stats.broken else "")
            )
        return stats


def _make_queues(host: Host, count: int, entries: int, interrupts: bool) -> list[QueuePair]:
    return [host.create_queue_pair(entries, interrupts=interrupts) for _ in range(count)]


def _run_interruptibly(load: Load, seconds: float, ios: int) -> LoadStats:
    # In a thread of its own: ^C must not find commands in flight on memory that is freed.
    done: list[LoadStats] = []
    worker = threading.Thread(target=lambda: done.append(load.run(seconds=seconds, ios=ios)))
    worker.start()
    try:
        worker.join()
    except BaseException:
        load.stop()
        worker.join()
        raise
    return done[0]


def quiet_cpus(cpus: tuple[int, int] | None) -> str:
    """How the two sides were placed, for reports."""
    if cpus is None:
        return "not pinned"
    return f"driver on CPU {cpus[0]}, server on CPU {cpus[1]} of {os.cpu_count()}"
