"""Flushes of a load, as a recorded namespace saw them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving import Attach, Serve
from shadowbell.cli import main
from shadowbell.crash import Recording
from shadowbell.crash.recording import Change
from shadowbell.driver import Load, LoadSpec, Verifier, run_load


def between(recording: Recording) -> list[list[Change]]:
    """The writes that began before the first flush, between two, and after the last."""
    found: list[list[Change]] = [[]]
    for each in sorted([*recording.changes, *recording.flushes], key=lambda one: one.begun):
        if isinstance(each, Change):
            found[-1].append(each)
        else:
            found.append([])
    return found


@pytest.mark.parametrize("iothreads", ["1", "2"])
def test_at_depth_one_a_flush_covers_the_writes_before_it(
    serve: Serve, attach: Attach, tmp_path: Path, iothreads: str
) -> None:
    log = tmp_path / "disk.log"
    host = attach(serve(f"memory:4M,record={log}", "--iothreads", iothreads))
    spec = LoadSpec(pattern="randwrite", block_size=4096, depth=1, flush_every=16)
    stats = run_load(host, [host.create_queue_pair()], spec, ios=500)
    assert stats.clean
    assert (stats.ios, stats.flushes) == (500, 31)
    recording = Recording.open(log)
    groups = between(recording)
    assert [len(group) for group in groups] == [16] * 31 + [4]
    for flush, before, after in zip(recording.flushes, groups, groups[1:], strict=False):
        assert flush.ok
        assert flush.ended is not None
        assert all(write.ended is not None and write.ended < flush.begun for write in before)
        assert all(flush.ended < write.begun for write in after)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_at_depth_32_a_flush_begins_after_so_many_writes(
    serve: Serve, attach: Attach, tmp_path: Path, kind: str
) -> None:
    log = tmp_path / "disk.log"
    spec = "memory:4M" if kind == "memory" else "{folder}/disk.img"
    host = attach(serve(f"{spec},record={log}", image=4 << 20))
    load = LoadSpec(pattern="randwrite", block_size=4096, depth=32, flush_every=24)
    verifier = Verifier(host.namespaces[1].blocks, host.lba_size(1))
    stats = run_load(host, [host.create_queue_pair()], load, ios=2000, verifier=verifier)
    assert stats.clean
    assert (stats.ios, stats.flushes) == (2000, 83)
    recording = Recording.open(log)
    assert [len(group) for group in between(recording)] == [24] * 83 + [8]
    for number, flush in enumerate(recording.flushes, 1):
        assert flush.ok
        # It didn't wait for those in flight, which were at most the depth without itself.
        started = recording.changes[: number * 24]
        ends = [write.ended for write in started]
        assert sum(end is None or end > flush.begun for end in ends) <= 31


def test_two_queues_flush_a_mixed_load(serve: Serve, attach: Attach, tmp_path: Path) -> None:
    log = tmp_path / "disk.log"
    host = attach(serve(f"memory:4M,record={log}", "--iothreads", "2"))
    queues = [host.create_queue_pair(interrupts=True) for _ in range(2)]
    load = LoadSpec(pattern="randrw", block_size=4096, depth=8, sleep=True, flush_every=10)
    verifier = Verifier(host.namespaces[1].blocks, host.lba_size(1))
    stats = run_load(host, queues, load, ios=2000, verifier=verifier)
    assert stats.clean
    assert len(Recording.open(log).flushes) == stats.flushes
    # Each queue has up to ten writes behind its last Flush.
    assert stats.flushes * 10 <= stats.writes <= stats.flushes * 10 + 20


def test_a_load_that_never_writes_is_refused(serve: Serve, attach: Attach) -> None:
    host = attach(serve("memory:1M"))
    queue = host.create_queue_pair()
    for spec in (
        LoadSpec(pattern="randread", flush_every=1),
        LoadSpec(pattern="randrw", write_percent=0, flush_every=1),
    ):
        with pytest.raises(ValueError, match="never writes"):
            Load(host, [queue], spec)


def test_bench_flushes_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, report, fio = (tmp_path / name for name in ("disk.log", "out.json", "fio.json"))
    arguments = [
        *("bench", "--namespace", f"memory:16M,record={log}", "--no-fill", "--time", "0.2"),
        *("--pattern", "randwrite", "--depth", "4", "--rate", "4000", "--flush-every", "8"),
        *("--json", str(report), "--fio-json", str(fio)),
    ]
    assert main(arguments) == 0
    (run,) = json.loads(report.read_text())["runs"]
    assert run["flush_every"] == 8
    assert run["ios"] >= run["flushes"] * 8 >= run["ios"] - 8 > 0
    assert 0 < run["flush_latency_us"]["p50"] <= run["flush_latency_us"]["p99"]
    (job,) = json.loads(fio.read_text())["jobs"]
    assert job["sync"]["total_ios"] == job["sync"]["lat_ns"]["N"] == run["flushes"]
    assert job["write"]["total_ios"] == run["ios"]
    assert "a Flush every 8 writes" in capsys.readouterr().out
    # The warming up and the run each begin to count anew; shutting down and ending flush as well.
    sizes = [len(group) for group in between(Recording.open(log))]
    assert sum(size != 8 for size in sizes) <= 4
    assert len(sizes) > run["flushes"]


def test_bench_flushes_what_it_verifies(tmp_path: Path) -> None:
    report = tmp_path / "out.json"
    arguments: list[Any] = [
        *("bench", "--namespace", "memory:16M", "--verify", "--pattern", "randrw", "--time", "0.1"),
        *("--queues", "2", "--depth", "1,8", "--flush-every", "0,4", "--json", str(report)),
    ]
    assert main(arguments) == 0
    runs = json.loads(report.read_text())["runs"]
    assert [(run["flush_every"], run["flushes"] > 0) for run in runs] == [
        *[(0, False)] * 2,
        *[(4, True)] * 2,
    ]
