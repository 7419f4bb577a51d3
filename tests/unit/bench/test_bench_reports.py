"""What is made of counters: ratios, fio's JSON, tables, the picture."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shadowbell.bench import Measured, Point, Served, Sweep, plot, table
from shadowbell.bench.fio import fio_document
from shadowbell.bench.report import document, medians, merged, record
from shadowbell.bench.sweep import ratios
from shadowbell.driver import LoadStats
from shadowbell.driver.histogram import histogram_bucket
from shadowbell.errors import UserError


def stats(iops: int = 1000, ticks: int = 5000, **more: Any) -> LoadStats:
    values = {"seconds": 1.0, "reads": iops, "histogram": {histogram_bucket(ticks): iops}} | more
    return LoadStats(**values)


def one(target: str = "a", run: int = 0, iops: int = 1000, depth: int = 1, **more: Any) -> Measured:
    return Measured(
        target=target,
        point=Point(depth=depth, **more),
        run=run,
        stats=stats(iops, 5000 * depth),
        server_cpu=0.5,
        driver_cpu=1.0,
        others=0.0,
    )


def test_ratios_pair_the_runs() -> None:
    measured = []
    for run, (first, second) in enumerate([(200, 100), (900, 300), (100, 100)]):
        measured += [one("a", run, first), one("b", run, second)]
    (ratio,) = ratios(measured, "a", "b")
    assert (ratio.iops, ratio.lowest, ratio.highest) == (2.0, 1.0, 3.0)
    assert ratio.p50 == 1.0


def test_the_median_run_stands_for_a_point() -> None:
    measured = [one(run=run, iops=iops) for run, iops in enumerate([5, 1, 4])]
    assert [found.stats.iops for found in medians(measured)] == [4]


def test_cpu_of_a_run() -> None:
    found = record(one(iops=1000))
    assert found["server_cpu_percent"] == pytest.approx(50)
    assert found["server_cpu_us_per_io"] == pytest.approx(500)
    assert found["depth"] == 1


def test_merged_runs_follow_each_other() -> None:
    total = merged([stats(100), stats(300)])
    assert (total.seconds, total.ios, total.iops) == (2.0, 400, 200)


def test_fio_json_has_what_its_readers_look_for() -> None:
    text = json.dumps(fio_document([one(run=run, iops=1000 * (run + 1)) for run in range(2)]))
    (job,) = json.loads(text)["jobs"]
    assert job["error"] == 0
    read, write = job["read"], job["write"]
    assert read["iops"] == 1500
    assert read["total_ios"] == 3000
    assert read["io_bytes"] == 3000 * 4096
    assert read["bw"] == 1500 * 4
    assert read["runtime"] == 2000
    assert read["clat_ns"]["N"] == 3000
    assert read["clat_ns"]["min"] <= read["clat_ns"]["mean"] <= read["clat_ns"]["max"]
    percentile = read["clat_ns"]["percentile"]
    assert 0 < percentile["50.000000"] <= percentile["99.900000"]
    assert (write["iops"], write["clat_ns"]["N"]) == (0, 0)


def test_fio_json_of_a_mixed_load_keeps_its_latencies_together() -> None:
    mixed = Measured(
        target="a",
        point=Point(pattern="randrw"),
        run=0,
        stats=stats(100, reads=60, writes=40, histogram={300: 100}),
        server_cpu=None,
        driver_cpu=0.0,
        others=0.0,
    )
    (job,) = fio_document([mixed])["jobs"]
    assert (job["read"]["iops"], job["write"]["iops"], job["mixed"]["iops"]) == (60, 40, 100)
    assert job["mixed"]["clat_ns"]["N"] == 100
    assert job["read"]["clat_ns"]["N"] == job["write"]["clat_ns"]["N"] == 0


def test_flushes_are_told_apart() -> None:
    flushed = Measured(
        target="a",
        point=Point(pattern="randwrite", flush_every=10),
        run=0,
        stats=stats(100, reads=0, writes=100, flushes=10, flush_histogram={300: 10}),
        server_cpu=None,
        driver_cpu=0.0,
        others=0.0,
    )
    found = record(flushed)
    assert (found["iops"], found["flushes"], found["flush_every"]) == (100, 10, 10)
    assert found["flush_latency_us"]["p50"] > 0
    (job,) = fio_document([flushed])["jobs"]
    assert job["job options"]["fdatasync"] == "10"
    assert (job["write"]["iops"], job["write"]["clat_ns"]["N"]) == (100, 100)
    assert (job["sync"]["total_ios"], job["sync"]["lat_ns"]["N"]) == (10, 10)
    assert job["sync"]["lat_ns"]["percentile"]["50.000000"] > 0
    assert "a Flush every 10 writes" in " ".join(show([flushed]).split())
    assert "flush" in table.legend([flushed])
    assert "flush" not in show([one()]) + table.legend([one()])
    assert record(one())["flushes"] == fio_document([one()])["jobs"][0]["sync"]["total_ios"] == 0


def test_a_report_is_json() -> None:
    sweep = Sweep(targets=(Served("a"), Served("b")), points=(Point(),))
    measured = [one("a"), one("b")]
    text = json.dumps(document(sweep, measured, ratios(measured, "a", "b")))
    found = json.loads(text)
    assert len(found["runs"]) == 2
    assert found["ratios"][0]["first"] == "a"
    assert found["machine"]["cpus"] > 0


def show(measured: list[Measured], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table.results_table(measured))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_table_of_two_ways_fits_into_80_characters() -> None:
    points = [(way, depth) for way in ("trap", "shadow") for depth in (1, 32, 128)]
    measured = [one(iops=1_234_567, depth=depth, way=way) for way, depth in points]
    text = show(measured)
    assert "…" not in text
    assert "1,234,567" in text


def test_a_noisy_machine_is_told() -> None:
    quiet = one()
    assert "Other processes" not in table.legend([quiet])
    noisy = Measured(
        target="a",
        point=Point(),
        run=0,
        stats=stats(),
        server_cpu=None,
        driver_cpu=0.0,
        others=0.5,
    )
    assert "50 % of a processor" in table.legend([quiet, noisy])


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_is_drawn(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"out.{suffix}"
    measured = [
        one(target, iops=1000 * depth, depth=depth) for target in "ab" for depth in (1, 32, 128)
    ]
    plot.check_plot(str(path))
    plot.draw(str(path), measured)
    assert path.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")


def test_a_picture_without_matplotlib_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"shadowbell\[plot\]"):
        plot.check_plot(str(tmp_path / "out.png"))


@pytest.mark.parametrize("name", ["out.bmp", "missing/out.png"])
def test_a_picture_that_cannot_be_is_refused_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="can't draw"):
        plot.check_plot(str(tmp_path / name))
