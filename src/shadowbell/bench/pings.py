"""Waking a sleeping device, beside the bare round trip between two sleeping processes.

The round trip is the least that any device behind a socket can do: one posted message wakes it, one
eventfd wakes the driver. A device that is asleep (``--poll-max-us 0``) adds its own work to that.
"""

from __future__ import annotations

import os
import select
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from shadowbell.bench.measure import Bench, Point, arena_bytes, latencies_us
from shadowbell.bench.process import pin, pinned
from shadowbell.bench.roundtrip import ping
from shadowbell.bench.sweep import Progress
from shadowbell.bench.target import Target
from shadowbell.driver import Doorbells, LoadStats
from shadowbell.errors import UserError

ECHO = "import sys; from shadowbell.bench.roundtrip import echo; echo(*map(int, sys.argv[1:]))"
WARM = 1000  # round trips
START_SECONDS = 10.0


@dataclass(frozen=True)
class Pinged:
    """A way to wake the device; each run with the bare round trip that was measured beside it."""

    name: str
    runs: tuple[LoadStats, ...]
    bare: tuple[LoadStats, ...]

    @property
    def ratio(self) -> float:
        """Mean latency by that of the bare round trip: the median of the runs' ratios."""
        pairs = zip(self.runs, self.bare, strict=True)
        return statistics.median(mean_us(own) / mean_us(other) for own, other in pairs)

    def record(self) -> dict[str, Any]:
        """For a report; microseconds."""
        return {
            "name": self.name,
            "ratio": self.ratio,
            "p50_us": median_us(self.runs, 50),
            "p99_us": median_us(self.runs, 99),
            "bare_p50_us": median_us(self.bare, 50),
            "bare_p99_us": median_us(self.bare, 99),
        }


def median_us(runs: Sequence[LoadStats], percent: float) -> float:
    """The runs' median of a latency percentile."""
    return statistics.median(run.percentile(percent) for run in runs)


def mean_us(stats: LoadStats) -> float:
    """Mean latency."""
    buckets = latencies_us(stats.histogram)
    count = sum(ios for _, ios in buckets)
    return sum(us * ios for us, ios in buckets) / count if count else 0.0


def measure_pings(
    target: Target,
    ways: Sequence[Doorbells],
    *,
    seconds: float,
    runs: int,
    cpus: tuple[int, int],
    progress: Progress,
) -> list[Pinged]:
    """A read at queue depth 1 by each doorbell way, in turn with the bare round trip.

    Raises UserError when the target raises no interrupts, or can't ring that way.
    """
    found = []
    cpu = cpus[1]
    with pinned(cpus[0]), _partner(cpu) as (connection, event):
        for way in ways:
            point = Point(way=way, poll="0", depth=1, interrupts=True)
            woken, bare = [], []
            with target.attach(way, "0", cpu, arena_bytes([point])) as attached:
                bench = Bench(target.name, attached, [point])
                for run in range(runs):
                    progress(f"bare round trip, run {run + 1} of {runs}")
                    bare.append(_ping(connection, event, seconds))
                    progress(f"{way} doorbells, run {run + 1} of {runs}")
                    woken.append(bench.measure(point, run, seconds).stats)
            found.append(Pinged(f"{way} doorbells", tuple(woken), tuple(bare)))
    return found


def _ping(connection: int, event: int, seconds: float) -> LoadStats:
    try:
        ping(connection, event, WARM, seconds)
        elapsed, histogram = ping(connection, event, 0, seconds)
    except OSError as error:
        raise UserError(f"the ping's other process ended: {error}") from error
    count = sum(histogram.values())
    return LoadStats(seconds=elapsed, reads=count, histogram=histogram)


@contextmanager
def _partner(cpu: int | None) -> Iterator[tuple[int, int]]:
    ours, theirs = socket.socketpair()
    event = os.eventfd(0, os.EFD_CLOEXEC)
    fds = (theirs.fileno(), event)
    process = subprocess.Popen([sys.executable, "-c", ECHO, *map(str, fds)], pass_fds=fds)
    try:
        theirs.close()
        ours.send(b"ready?")
        if not select.select([event], [], [], START_SECONDS)[0]:
            raise UserError("the ping's other process did not start")
        os.eventfd_read(event)
        if cpu is not None:
            pin(process.pid, cpu)
        yield ours.fileno(), event
    finally:
        ours.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(event)
