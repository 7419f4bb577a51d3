"""Power failures: every disk that one can leave, and what a journal on it has lost."""

from __future__ import annotations

import random
from pathlib import Path

import journal
import pytest

from serving import Attach, Serve
from shadowbell.cli import main
from shadowbell.crash import CrashStates, Device, Granularity, Recording
from shadowbell.driver import LoadSpec, run_load
from shadowbell.nvme import Feature

MIB = 1 << 20


def record_journal(
    serve: Serve, attach: Attach, log: Path, *, changes: int = 60, lba: int = 512, **how: bool
) -> journal.Journal:
    cache = how.pop("cache", True)
    served = serve(f"memory:{64 * lba},lba={lba},record={log}")
    host = attach(served)
    if not cache:
        host.admin.set_feature(Feature.VOLATILE_WRITE_CACHE, 0)
    writer = journal.Journal(host.create_queue_pair(), lba, **how)
    writer.format()
    writer.run(changes)
    return writer


def losses(log: Path, writer: journal.Journal, states: int, **how: str) -> tuple[int, list[str]]:
    """How many states there were, and what was lost in them."""
    found: list[str] = []
    checked = 0
    crashes = CrashStates(Recording.open(log), seed=3, **how)  # type: ignore[arg-type]
    for state in crashes.sample(states):
        checked += 1
        found += journal.lost(state.contents(), writer.lba, writer.acknowledged, state.time)
    return checked, found


@pytest.mark.parametrize("granularity", ["command", "block"])
@pytest.mark.parametrize("fua", [False, True], ids=["flush", "fua"])
@pytest.mark.parametrize("lba", [512, 4096])
def test_a_journal_loses_nothing_it_acknowledged(
    serve: Serve, attach: Attach, tmp_path: Path, granularity: Granularity, fua: bool, lba: int
) -> None:
    log = tmp_path / "disk.log"
    writer = record_journal(serve, attach, log, fua=fua, lba=lba)
    checked, found = losses(log, writer, 2000, granularity=granularity)
    assert checked > 1000
    assert not found


def test_with_the_write_cache_off_no_flush_is_needed(
    serve: Serve, attach: Attach, tmp_path: Path
) -> None:
    """Base 2.0, 5.27.1.4: without the cache, what is completed is durable."""
    log = tmp_path / "disk.log"
    writer = record_journal(serve, attach, log, flush=False, cache=False)
    assert losses(log, writer, 1000, granularity="block")[1] == []


def test_a_journal_that_does_not_flush_is_found_out(
    serve: Serve, attach: Attach, tmp_path: Path
) -> None:
    log = tmp_path / "disk.log"
    writer = record_journal(serve, attach, log, flush=False)
    assert losses(log, writer, 500)[1]


@pytest.mark.parametrize("device", ["drops-flushes", "early-flushes", "ignores-fua"])
def test_a_device_that_lies_is_found_out(
    serve: Serve, attach: Attach, tmp_path: Path, device: Device
) -> None:
    """The same check on what a broken device would have left: it must fail."""
    log = tmp_path / "disk.log"
    writer = record_journal(serve, attach, log, fua=device == "ignores-fua")
    assert losses(log, writer, 500, device=device)[1]


def test_turning_the_cache_off_flushes_what_was_written(
    serve: Serve, attach: Attach, tmp_path: Path
) -> None:
    log = tmp_path / "disk.log"
    host = attach(serve(f"memory:1M,record={log}"))
    queue = host.create_queue_pair()
    queue.write(1, 0, b"a" * 512)
    assert CrashStates(Recording.open(log)).count(2) == 2
    host.admin.set_feature(Feature.VOLATILE_WRITE_CACHE, 0)
    queue.write(1, 1, b"b" * 512)
    queue.write_zeroes(1, 0, 1)
    queue.dataset_management(1, [(1, 1)])
    recording = Recording.open(log)
    crashes = CrashStates(recording)
    assert crashes.count(recording.moments) == 1
    (state,) = crashes.at(recording.moments, 1)
    assert bytes(state.contents()) == bytes(MIB)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_the_recording_is_the_disk(serve: Serve, attach: Attach, tmp_path: Path, kind: str) -> None:
    """Mixed commands on two queues: all of the log's changes make the disk, by bytes."""
    log = tmp_path / "disk.log"
    spec = "memory:4M" if kind == "memory" else "{folder}/disk.img"
    served = serve(f"{spec},record={log}", "--iothreads", "2", image=4 * MIB)
    host = attach(served)
    queues = [host.create_queue_pair(), host.create_queue_pair()]
    chance = random.Random(7)
    for number in range(150):
        queue, lba = queues[number % 2], chance.randrange(8192 - 256)
        blocks = chance.randint(1, 256)
        match chance.randrange(6):
            case 0:
                queue.write_zeroes(1, lba, blocks, deallocate=chance.random() < 0.5)
            case 1:
                queue.dataset_management(1, [(lba, blocks), (lba // 2, blocks)])
            case 2:
                queue.flush(1)
            case _:
                data = chance.randbytes(blocks * 512)
                queue.write(1, lba, data, fua=chance.random() < 0.2, offset=chance.choice((0, 4)))
    load = LoadSpec(pattern="randwrite", block_size=4096, depth=16, first=0, length=4096)
    assert run_load(host, queues, load, ios=500).clean
    queues[0].flush(0xFFFFFFFF)
    disk = b"".join(queues[0].read(1, at, 512) for at in range(0, 8192, 512))
    recording = Recording.open(log)
    crashes = CrashStates(recording)
    # Two writes of the load may have met on a block: then the log can't say which came last.
    if crashes.count(recording.moments) == 1:
        (state,) = crashes.at(recording.moments, 1)
        settled = {offset for offset, _, _ in state.pieces}
        assert len(settled) == len(state.pieces)
        assert bytes(state.contents()) == disk


def test_a_check_by_command(
    serve: Serve,
    attach: Attach,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`shadowbell crash`: exit code 0 or 1, and the image that failed is kept."""
    log = tmp_path / "disk.log"
    where = [str(log), "--folder", str(tmp_path)]
    host = attach(serve(f"memory:1M,record={log}"))
    queue = host.create_queue_pair()
    queue.write(1, 0, b"a" * 512)
    queue.flush(1)
    queue.write(1, 1, b"b" * 512)
    assert main(["crash", *where, "--", "grep", "-q", "[ab]", "{}"]) == 1
    assert "power failed after entry 0" in capsys.readouterr().out
    (kept,) = tmp_path.glob("crashed-*.img")
    assert kept.read_bytes() == bytes(MIB)
    check = ["--", "sh", "-c", "grep -q a {} && test $SHADOWBELL_CRASH_NS -gt 0"]
    flushed = Recording.open(log)
    start, end = flushed.times[0], flushed.flushes[0].ended
    assert end is not None
    window = f"{(flushed.times[end] - start) / 1e9 + 1e-9}:1000"
    assert main(["crash", *where, "--window", window, *check]) == 0
    assert " 0 failed" in capsys.readouterr().out
    lying = ["--device", "drops-flushes", "--window", window]
    assert main(["crash", *where, *lying, *check]) == 1
