"""The sweep: every point on one target, or on two in turn (A B A B)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby

from shadowbell.bench.measure import Bench, Measured, Point, arena_bytes
from shadowbell.bench.process import Competitor, pinned
from shadowbell.bench.target import Target, paused

Progress = Callable[[str], None]
"""Told what is measured next."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What to measure. ``cpus``: of the driver and of servers that we start; points that compete
    need them.

    ``pause`` stops the other target's process while one is measured. ``fill`` None: write what
    would otherwise be read without ever having been written.
    """

    targets: tuple[Target, ...]
    points: tuple[Point, ...]
    seconds: float = 2.0
    runs: int = 1
    cpus: tuple[int, int] | None = None
    size: int | None = None
    verify: bool = False
    fill: bool | None = None
    pause: bool = False


@dataclass(frozen=True)
class Ratio:
    """The first target by the second at one point: the median of the runs' ratios."""

    point: Point
    iops: float
    p50: float
    lowest: float  # of the runs' IOPS ratios
    highest: float


def run_sweep(sweep: Sweep, progress: Progress = lambda text: None) -> list[Measured]:
    """Measure all; the runs of a point alternate between the targets. Raises UserError."""
    measured: list[Measured] = []
    with pinned(sweep.cpus[0] if sweep.cpus is not None else None):
        for _, group in groupby(sweep.points, key=lambda point: (point.way, point.poll)):
            measured += _run_setup(sweep, tuple(group), progress)
    return measured


def _run_setup(sweep: Sweep, points: Sequence[Point], progress: Progress) -> list[Measured]:
    way, poll = points[0].way, points[0].poll
    cpu = sweep.cpus[1] if sweep.cpus is not None else None
    found: list[Measured] = []
    with ExitStack() as stack:
        benches = []
        for target in sweep.targets:
            progress(f"{target.name}: attaching")
            attached = stack.enter_context(target.attach(way, poll, cpu, arena_bytes(points)))
            fill = target.fresh if sweep.fill is None else sweep.fill
            bench = Bench(
                target.name, attached, points, size=sweep.size, verify=sweep.verify, fill=fill
            )
            benches.append(bench)
        for point in points:
            for run in range(sweep.runs):
                for bench in benches:
                    progress(f"{bench.name}: {describe(point)}, run {run + 1} of {sweep.runs}")
                    rest = [other.attached.pid for other in benches if other is not bench]
                    with paused(rest if sweep.pause else []), _beside(point, cpu) as beside:
                        found.append(bench.measure(point, run, sweep.seconds, beside))
    return found


@contextmanager
def _beside(point: Point, cpu: int | None) -> Iterator[list[int]]:
    if not point.compete or cpu is None:
        yield []
        return
    with Competitor(cpu) as busy:
        yield [busy.pid]


def describe(point: Point) -> str:
    """A point in a few words."""
    words = [point.way, point.pattern, f"{point.block_size} bytes", f"queue depth {point.depth}"]
    if point.rate:
        words.append(f"{point.rate:,.0f} a second")
    if point.flush_every:
        words.append(f"a Flush every {point.flush_every} writes")
    return ", ".join(words)


def ratios(measured: Sequence[Measured], first: str, second: str) -> list[Ratio]:
    """Compare two targets at each point, run by run."""
    found = []
    for point in dict.fromkeys(one.point for one in measured):
        at = [one for one in measured if one.point == point]
        pairs = list(
            zip(
                [one.stats for one in at if one.target == first],
                [one.stats for one in at if one.target == second],
                strict=True,
            )
        )
        iops = [a.iops / b.iops for a, b in pairs if b.iops]
        p50 = [a.percentile(50) / b.percentile(50) for a, b in pairs if b.percentile(50)]
        if iops and p50:
            middle = statistics.median(iops)
            found.append(Ratio(point, middle, statistics.median(p50), min(iops), max(iops)))
    return found
