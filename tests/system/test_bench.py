"""`shadowbell bench` against real servers, in runs of 0.1 s."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from shadowbell.cli import main

SHORT = ["--time", "0.1"]


def bench(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    path = tmp_path / "out.json"
    assert main(["bench", *SHORT, *arguments, "--json", str(path)]) == 0
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_sweep_over_ways_and_depths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fio = tmp_path / "fio.json"
    arguments = ["--namespace", "memory:16M", "--doorbells", "trap,shadow,mapped"]
    found = bench(tmp_path, *arguments, "--depth", "1,8", "--fio-json", str(fio))
    runs = found["runs"]
    assert [(run["way"], run["depth"]) for run in runs] == [
        (way, depth) for way in ("trap", "shadow", "mapped") for depth in (1, 8)
    ]
    for run in runs:
        assert run["iops"] > 0
        assert 0 < run["latency_us"]["p50"] <= run["latency_us"]["p99.9"]
        assert run["server_cpu_us_per_io"] > 0
        assert bool(run["per_io"]["doorbell_register_writes"]) == (run["way"] == "trap") or (
            run["way"] == "shadow"
        )
    jobs = json.loads(fio.read_text())["jobs"]
    assert [job["read"]["iops"] > 0 for job in jobs] == [True] * 6
    assert "IOPS" in capsys.readouterr().out


def test_two_targets_in_turn(tmp_path: Path) -> None:
    arguments = ["--namespace", "null:1G", "--against", "memory:16M", "--runs", "3", "--pause"]
    found = bench(tmp_path, *arguments, "--depth", "4")
    names = [run["target"] for run in found["runs"]]
    assert names == ["null:1G", "memory:16M"] * 3
    (ratio,) = found["ratios"]
    assert ratio["iops_lowest"] <= ratio["iops"] <= ratio["iops_highest"]


def test_verified_mixed_load_with_interrupts(tmp_path: Path) -> None:
    arguments = ["--namespace", "memory:16M", "--pattern", "randrw", "--mix", "30"]
    found = bench(tmp_path, *arguments, "--verify", "--interrupts", "--depth", "8")
    (run,) = found["runs"]
    assert run["per_io"]["interrupts"] > 0


def test_lost_writes_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *SHORT, "--namespace", "null:16M", "--verify"]) == 2
    assert "wrong reads" in capsys.readouterr().err


def test_a_rate_is_kept(tmp_path: Path) -> None:
    found = bench(tmp_path, "--namespace", "null:1G", "--rate", "1000", "--poll-max-us", "0,busy")
    for run in found["runs"]:
        assert run["iops"] == pytest.approx(1000, rel=0.3)


def test_a_busy_process_on_the_servers_processor(tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    arguments = ["--namespace", "null:1G", "--against", "memory:16M", "--depth", "4"]
    found = bench(tmp_path, *arguments, "--cpus", f"{cpus[0]},{cpus[-1]}", "--compete")
    assert [(run["compete"], run["iops"] > 0) for run in found["runs"]] == [(True, True)] * 2


def test_pings(tmp_path: Path) -> None:
    found = bench(tmp_path, "--ping", "--namespace", "memory:16M", "--runs", "1")
    assert [one["name"] for one in found["results"]] == ["trap doorbells", "shadow doorbells"]
    assert all(one["ratio"] > 0 for one in found["results"])


def test_idle_controllers(tmp_path: Path) -> None:
    found = bench(tmp_path, "--idle", "1,3")
    assert [one["controllers"] for one in found["results"]] == [1, 3]
    assert all(one["cpu_percent"] < 50 for one in found["results"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--namespace", "memory:1M", "--", "--bogus"], "unrecognized arguments: --bogus"),
        (["--namespace", "memory:1M", "--queues", "65"], "I/O queues"),
        (["--namespace", "memory:1M", "--block-size", "1000"], "no whole blocks"),
        (["--namespace", "memory:1M", "--doorbells", "shadow", "--", "--no-dbbuf"], "no-dbbuf"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *SHORT, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
