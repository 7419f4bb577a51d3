"""Results as JSON: every run, the medians, the ratios, and where it was measured."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from shadowbell import __version__
from shadowbell.bench.measure import Measured, quiet_cpus
from shadowbell.bench.process import machine
from shadowbell.bench.sweep import Ratio, Sweep
from shadowbell.driver import LoadStats
from shadowbell.errors import UserError

PERCENTILES: Final = (1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99)


def record(one: Measured) -> dict[str, Any]:
    """One run: what was asked, and all that was counted. Latencies in microseconds."""
    stats = one.stats
    return {
        "target": one.target,
        **asdict(one.point),
        "run": one.run,
        "seconds": stats.seconds,
        "ios": stats.ios,
        "iops": stats.iops,
        "bytes_per_second": stats.bytes / stats.seconds if stats.seconds else 0.0,
        "latency_us": {f"p{percent:g}": stats.percentile(percent) for percent in PERCENTILES},
        "flushes": stats.flushes,
        "flush_latency_us": {
            f"p{percent:g}": stats.flush_percentile(percent) for percent in PERCENTILES
        },
        "per_io": {
            "doorbell_register_writes": stats.per_io(stats.registers),
            "ioeventfd_writes": stats.per_io(stats.wakeups),
            "doorbell_stores": stats.per_io(stats.stores),
            "interrupts": stats.per_io(stats.interrupts),
        },
        "shadow_doorbells": one.shadowed,
        "mapped_doorbells": one.mapped,
        "server_cpu_percent": one.server_percent,
        "server_cpu_us_per_io": one.server_us_per_io,
        "driver_cpu_percent": one.driver_cpu / stats.seconds * 100 if stats.seconds else 0.0,
        "other_processes_percent": one.others * 100,
    }


def medians(measured: Sequence[Measured]) -> list[Measured]:
    """Of each target and point the run with the median IOPS (the lower one of two)."""
    found = []
    for key in dict.fromkeys((one.target, one.point) for one in measured):
        runs = [one for one in measured if (one.target, one.point) == key]
        middle = statistics.median_low(one.stats.iops for one in runs)
        found.append(next(one for one in runs if one.stats.iops == middle))
    return found


def merged(stats: Sequence[LoadStats]) -> LoadStats:
    """All counters of consecutive runs in one; ``seconds`` is their sum."""
    total = LoadStats()
    for one in stats:
        total.merge(one)
    total.seconds = sum(one.seconds for one in stats)
    return total


def document(
    sweep: Sweep, measured: Sequence[Measured], compared: Sequence[Ratio]
) -> dict[str, Any]:
    """The whole report."""
    return {
        "shadowbell": __version__,
        "machine": machine(),
        "placement": quiet_cpus(sweep.cpus),
        "runs": [record(one) for one in measured],
        "ratios": [
            {
                "first": sweep.targets[0].name,
                "second": sweep.targets[1].name,
                **asdict(one.point),
                "iops": one.iops,
                "iops_lowest": one.lowest,
                "iops_highest": one.highest,
                "p50": one.p50,
            }
            for one in compared
        ],
    }


def write_json(path: str, value: object) -> None:
    """Write a JSON file. Raises UserError when it can't be written."""
    try:
        Path(path).write_text(json.dumps(value, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"can't write {path} ({error.strerror}): choose another file") from error
