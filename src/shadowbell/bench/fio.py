"""Results in the form of fio's ``--output-format=json``, for tools that read that.

One job for each target and point, its runs put together. A mixed load's latencies aren't kept
apart by direction: its job has them under ``mixed``, as fio's ``unified_rw_reporting=both`` does.
Flushes are under ``sync``, where fio has those of ``fdatasync``.
What fio counts and we don't (submission latency, page faults, disk utilisation) is left out.
Latencies in nanoseconds, ``bw`` in KiB/s, ``runtime`` in milliseconds (fio(1), "JSON output").
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from shadowbell import __version__
from shadowbell.bench.measure import Measured, Point, latencies_us
from shadowbell.bench.report import PERCENTILES, merged
from shadowbell.driver.load import percentile_us


def fio_document(measured: Sequence[Measured]) -> dict[str, Any]:
    """The whole output; an empty measurement has no jobs."""
    now = time.time()
    keys = dict.fromkeys((one.target, one.point) for one in measured)
    return {
        "fio version": f"shadowbell-{__version__}",
        "timestamp": int(now),
        "timestamp_ms": int(now * 1000),
        "time": time.strftime("%a %b %d %H:%M:%S %Y", time.localtime(now)),
        "jobs": [
            _job(number, [one for one in measured if (one.target, one.point) == key])
            for number, key in enumerate(keys)
        ],
    }


def _job(number: int, runs: Sequence[Measured]) -> dict[str, Any]:
    point, stats = runs[0].point, merged([one.stats for one in runs])
    latency = _latency(stats.histogram)
    none = _latency({})
    read = _direction(point, stats.reads, stats.seconds)
    write = _direction(point, stats.writes, stats.seconds)
    job: dict[str, Any] = {
        "jobname": f"{point.way}-{point.pattern}-{point.block_size}-qd{point.depth}",
        "groupid": number,
        "error": 0,
        "elapsed": math.ceil(stats.seconds),
        "job options": {
            "name": runs[0].target,
            "filename": runs[0].target,
            "rw": point.pattern,
            "bs": str(point.block_size),
            "iodepth": str(point.depth),
            "numjobs": str(point.queues),
            "runtime": str(round(stats.seconds)),
            **({"fdatasync": str(point.flush_every)} if point.flush_every else {}),
        },
        "read": read | (latency if stats.reads and not stats.writes else none),
        "write": write | (latency if stats.writes and not stats.reads else none),
        "trim": _direction(point, 0, stats.seconds) | none,
        "sync": {"total_ios": stats.flushes, "lat_ns": _summary(stats.flush_histogram)},
    }
    if point.pattern == "randrw":
        job["mixed"] = _direction(point, stats.ios, stats.seconds) | latency
    return job


def _direction(point: Point, ios: int, seconds: float) -> dict[str, Any]:
    size = ios * point.block_size
    rate = size / seconds if seconds else 0.0
    return {
        "io_bytes": size,
        "io_kbytes": size >> 10,
        "bw_bytes": int(rate),
        "bw": int(rate / 1024),
        "iops": ios / seconds if seconds else 0.0,
        "runtime": round(seconds * 1000),
        "total_ios": ios,
        "short_ios": 0,
        "drop_ios": 0,
    }


def _latency(histogram: Mapping[int, int]) -> dict[str, Any]:
    found = _summary(histogram)
    lat = {name: value for name, value in found.items() if name != "percentile"}
    return {"slat_ns": _summary({}), "clat_ns": found, "lat_ns": lat}


def _summary(histogram: Mapping[int, int]) -> dict[str, Any]:
    buckets = latencies_us(histogram)
    count = sum(ios for _, ios in buckets)
    if not count:
        return {"min": 0, "max": 0, "mean": 0.0, "stddev": 0.0, "N": 0}
    mean = sum(us * ios for us, ios in buckets) / count
    deviation = math.sqrt(sum((us - mean) ** 2 * ios for us, ios in buckets) / count)
    return {
        "min": math.floor(buckets[0][0] * 1000),
        "max": math.ceil(buckets[-1][0] * 1000),
        "mean": mean * 1000,
        "stddev": deviation * 1000,
        "N": count,
        "percentile": {f"{p:.6f}": round(percentile_us(histogram, p) * 1000) for p in PERCENTILES},
    }
