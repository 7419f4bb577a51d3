"""The load loop against a toy device: counts, verification, and devices that lie."""

import itertools
import os
import struct
from typing import Any

import pytest
from fake_device import LBA, FakeDevice

from shadowbell.driver.histogram import histogram_bucket, histogram_floor
from shadowbell.driver.hostload import LoadLoop
from shadowbell.driver.load import LoadStats
from shadowbell.driver.verifier import Verifier

DEPTH = 4


def loop(device: FakeDevice, writes: int, check: Verifier | None, **more: Any) -> LoadLoop:
    buffers = [device.arena.allocate(4096) for _ in range(DEPTH)]
    options: dict[str, Any] = {"first": 0, "units": 32, "blocks": 2, "seed": 7} | more
    return LoadLoop(
        [device.ring],
        [[(buffer.address, buffer.iova, 0) for buffer in buffers]],
        nsid=1,
        writes=writes,
        sequential=False,
        check=check,
        **options,
    )


def run(device: FakeDevice, writes: int, check: Verifier | None, ios: int = 600) -> LoadStats:
    return LoadStats.of(loop(device, writes, check).run(limit=ios, stall=1), 1024)


def test_mixed_load_verifies(device: FakeDevice) -> None:
    verifier = Verifier(64, LBA)
    stats = run(device, 32768, verifier)
    assert stats.clean
    assert stats.ios == 600
    assert 200 < stats.writes < 400
    assert stats.bytes == 600 * 1024
    assert sum(stats.histogram.values()) == 600
    assert 0 < stats.percentile(50) <= stats.percentile(99.9)
    assert stats.stores == stats.updates > 0
    assert device.ring.running == 0
    for lba in range(64):
        assert verifier.check(lba, bytes(device.disk[lba * LBA : (lba + 1) * LBA])) is None


def test_queue_serves_commands_after_a_load(device: FakeDevice) -> None:
    for _ in range(5):
        assert run(device, 0, None, 37).clean
    assert device.ring.room == device.entries - 1


def sleeping(device: FakeDevice, ios: int) -> LoadStats:
    load = loop(device, 0, None, sleep=True, watchdog=0.2)
    return LoadStats.of(load.run(limit=ios, stall=5), 1024)


def test_a_watchful_load_counts_interrupts_that_never_came() -> None:
    """Of 40 completions the last ten aren't told of; with four under way that can't be hidden."""
    vector = os.eventfd(0, os.EFD_NONBLOCK)
    with FakeDevice(irq=vector) as device:
        device.interrupt = lambda: os.eventfd_write(vector, 1)
        assert sleeping(device, 100).clean
        told = itertools.count(1)
        device.interrupt = lambda: next(told) <= 30 and os.eventfd_write(vector, 1)
        stats = sleeping(device, 40)
    os.close(vector)
    assert stats.ios == 40
    assert stats.lost == 0
    assert stats.missed >= 1
    assert not stats.clean


def test_a_watchdog_is_for_loads_that_sleep_at_once(device: FakeDevice) -> None:
    for options in ({"watchdog": 1.0}, {"watchdog": 1.0, "sleep": True, "spin": 0.1}):
        with pytest.raises(ValueError, match="sleep on interrupts"):
            loop(device, 0, None, **options)


def test_lost_write_is_found(device: FakeDevice) -> None:
    device.drop_write = lambda lba: lba == 10
    verifier = Verifier(64, LBA)
    stats = run(device, 32768, verifier, 2000)
    assert stats.mismatches
    assert stats.first_mismatch == 10


def test_stale_neighbour_is_found(device: FakeDevice) -> None:
    verifier = Verifier(64, LBA)
    assert run(device, 65536, verifier).clean
    device.disk[0:LBA] = device.disk[LBA : 2 * LBA]
    stats = run(device, 0, verifier)
    assert stats.mismatches
    assert stats.first_mismatch == 0


def test_one_flipped_bit_is_found(device: FakeDevice) -> None:
    verifier = Verifier(64, LBA)
    assert run(device, 65536, verifier).clean
    device.disk[5 * LBA + 300] ^= 4
    assert verifier.check(5, bytes(device.disk[5 * LBA : 6 * LBA])) == 5


def test_error_statuses_are_counted(device: FakeDevice) -> None:
    def fail(opcode: int, lba: int, entry: bytes) -> bytes:
        phase = entry[14] & 1
        return entry[:14] + struct.pack("<H", (0x281 << 1) | phase)

    device.spoil = fail
    stats = run(device, 0, None, 50)
    assert (stats.errors, stats.ios, stats.first_error) == (50, 0, 0x281)


@pytest.mark.parametrize(
    ("offset", "value"),
    [(8, 8), (10, 2), (10, 300), (12, 7), (12, 0xFFFF)],
    ids=["sqhd", "sqid", "sqid-large", "cid-idle", "cid-large"],
)
def test_impossible_completions_are_refused(device: FakeDevice, offset: int, value: int) -> None:
    def lie(opcode: int, lba: int, entry: bytes) -> bytes:
        return entry[:offset] + struct.pack("<H", value) + entry[offset + 2 :]

    device.spoil = lie
    stats = LoadStats.of(loop(device, 0, None).run(limit=10, stall=0.1), 1024)
    assert stats.violations == DEPTH
    assert stats.stalled
    assert stats.lost == DEPTH


def test_silence_is_a_loss(device: FakeDevice) -> None:
    device.spoil = lambda opcode, lba, entry: b""
    stats = LoadStats.of(loop(device, 65536, None).run(limit=10, stall=0.1), 1024)
    assert stats.stalled
    assert stats.lost == DEPTH
    assert not stats.clean
    assert device.ring.running == DEPTH


def test_interrupted_write_leaves_both_outcomes_open() -> None:
    verifier = Verifier(4, LBA)
    old, new = bytearray(LBA), bytearray(LBA)
    verifier.prepare(1, old)
    verifier.confirm(1, 1)
    verifier.prepare(1, new)
    assert verifier.expects(1) == (1, 2)
    assert verifier.check(1, bytes(new)) is None
    assert verifier.check(1, bytes(old)) == 1  # settled: it can't go back
    assert verifier.expects(1) == (2, 2)


def test_unwritten_blocks_are_not_checked() -> None:
    verifier = Verifier(4, LBA)
    assert verifier.check(0, bytes(4 * LBA)) is None
    first = bytearray(LBA)
    verifier.prepare(0, first)
    assert verifier.check(0, bytes(LBA)) is None  # the write may not have happened


def test_ranges_too_small_are_refused(device: FakeDevice) -> None:
    with pytest.raises(ValueError, match="too small"):
        loop(device, 0, Verifier(64, LBA), units=DEPTH)
    with pytest.raises(ValueError, match="larger than"):
        loop(device, 0, Verifier(8, LBA))


def test_a_rate_spaces_the_starts(device: FakeDevice) -> None:
    stats = LoadStats.of(loop(device, 0, None, rate=1000.0).run(limit=200, stall=1), 1024)
    assert stats.clean
    assert stats.ios == 200
    assert 0.19 < stats.seconds < 1


def test_a_rate_below_one_is_refused(device: FakeDevice) -> None:
    with pytest.raises(ValueError, match="at least one"):
        loop(device, 0, None, rate=0.5)


def test_histogram_buckets_are_within_two_percent() -> None:
    for value in [0, 1, 63, 64, 65, 127, 128, 1000, 123456, 1 << 40, (1 << 64) - 1]:
        floor = histogram_floor(histogram_bucket(value))
        assert floor <= value
        assert value - floor <= value / 64
        assert histogram_bucket(floor) == histogram_bucket(value)


def test_merge_adds_up() -> None:
    one = LoadStats(seconds=1, reads=10, histogram={5: 10}, interrupts=3, flush_histogram={7: 1})
    more = {"flushes": 2, "flush_histogram": {7: 2}}
    one.merge(LoadStats(seconds=2, reads=5, writes=1, errors=1, histogram={5: 1, 9: 5}, **more))
    assert (one.seconds, one.ios, one.errors, one.interrupts) == (2, 16, 1, 3)
    assert one.histogram == {5: 11, 9: 5}
    assert (one.flushes, one.flush_histogram) == (2, {7: 3})
    assert one.per_io(one.interrupts) == 3 / 16
