"""A load with Flushes against a toy device, which sees every command in the order of its queue."""

import struct
from collections.abc import Callable
from itertools import groupby
from typing import Any

import pytest
from fake_device import LBA, FakeDevice

from shadowbell.driver.hostload import LoadLoop
from shadowbell.driver.load import LoadStats
from shadowbell.driver.verifier import Verifier

FLUSH, WRITE, READ = 0, 1, 2
ALL = 65536


def run(
    devices: list[FakeDevice], every: int, *, depth: int = 4, ios: int = 60, **more: Any
) -> LoadStats:
    options: dict[str, Any] = {"writes": ALL, "sequential": False, "check": None} | more
    slots = []
    for device in devices:
        buffers = [device.arena.allocate(4096) for _ in range(depth)]
        slots.append([(buffer.address, buffer.iova, 0) for buffer in buffers])
    load = LoadLoop(
        [device.ring for device in devices],
        slots,
        nsid=9,
        first=0,
        units=32,
        blocks=2,
        seed=7,
        flush_every=every,
        **options,
    )
    return LoadStats.of(load.run(limit=ios, stall=0.5), 1024)


def watch(device: FakeDevice) -> list[int]:
    """The opcodes that the device executes from now on."""
    seen: list[int] = []

    def note(opcode: int, lba: int, entry: bytes) -> bytes:
        seen.append(opcode)
        return entry

    device.spoil = note
    return seen


def failing(opcode: int) -> Callable[[int, int, bytes], bytes]:
    """Completes commands of this opcode with Write Fault."""

    def spoil(found: int, lba: int, entry: bytes) -> bytes:
        if found != opcode:
            return entry
        return entry[:14] + struct.pack("<H", (0x280 << 1) | entry[14] & 1)

    return spoil


def writes_before_each(opcodes: list[int]) -> list[int]:
    """How many writes were before the first Flush, between two, and after the last."""
    counts = [0]
    for opcode in opcodes:
        if opcode == FLUSH:
            counts.append(0)
        else:
            counts[-1] += opcode == WRITE
    return counts


@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("every", [1, 3, 10, 60, 1000])
def test_a_flush_is_the_command_after_so_many_writes(
    device: FakeDevice, every: int, depth: int
) -> None:
    seen = watch(device)
    stats = run([device], every, depth=depth)
    expected: list[int] = []
    for number in range(60):
        if number and number % every == 0:
            expected.append(FLUSH)
        expected.append(WRITE)
    assert seen == expected
    assert stats.clean
    assert (stats.ios, stats.flushes) == (60, expected.count(FLUSH))
    assert stats.bytes == 60 * 1024
    assert sum(stats.histogram.values()) == 60
    assert sum(stats.flush_histogram.values()) == stats.flushes
    assert bool(stats.flush_percentile(50)) == bool(stats.flushes)


def test_nothing_is_flushed_unasked(device: FakeDevice) -> None:
    seen = watch(device)
    stats = run([device], 0)
    assert seen == [WRITE] * 60
    assert (stats.flushes, stats.flush_histogram, stats.flush_percentile(50)) == (0, {}, 0)


def test_a_mixed_load_counts_writes_only(device: FakeDevice) -> None:
    seen = watch(device)
    stats = run([device], 5, ios=400, writes=ALL // 2)
    *full, rest = writes_before_each(seen)
    assert full == [5] * stats.flushes
    assert rest <= 5
    assert stats.reads + stats.writes == 400
    # Reads after a due Flush don't bring another one.
    assert all(len(list(group)) == 1 for opcode, group in groupby(seen) if opcode == FLUSH)


def test_a_flush_says_nothing_but_its_namespace(device: FakeDevice) -> None:
    assert run([device], 2, depth=7).clean
    slots = [bytes(device.sq.view[at : at + 64]) for at in range(0, device.entries * 64, 64)]
    flushes = [slot for slot in slots if slot[0] == FLUSH]
    assert flushes
    for slot in flushes:
        assert (slot[1], slot[4:8], slot[8:]) == (0, struct.pack("<I", 9), bytes(56))


def test_a_flush_takes_a_place_of_the_depth(device: FakeDevice) -> None:
    """Of a device that answers nothing, the queue holds two writes, a Flush and a write."""
    seen: list[int] = []

    def silent(opcode: int, lba: int, entry: bytes) -> bytes:
        seen.append(opcode)
        return b""

    device.spoil = silent
    stats = run([device], 2, depth=4)
    assert seen == [WRITE, WRITE, FLUSH, WRITE]
    assert stats.stalled
    assert stats.lost == 4


def test_commands_go_on_beside_a_flush_that_takes_long(device: FakeDevice) -> None:
    seen: list[int] = []

    def slow(opcode: int, lba: int, entry: bytes) -> bytes:
        seen.append(opcode)
        return entry if opcode != FLUSH else b""

    device.spoil = slow
    stats = run([device], 4, depth=3, ios=100)
    assert stats.lost == 3  # one after the other, each place was taken by a Flush
    assert seen == ([WRITE] * 4 + [FLUSH]) * 3
    assert stats.stalled


def test_each_queue_counts_its_own_writes() -> None:
    with FakeDevice(qid=1) as first, FakeDevice(qid=2) as second:
        seen = watch(first), watch(second)
        stats = run([first, second], 7, ios=500)
        assert stats.clean
    assert stats.ios == 500
    for opcodes in seen:
        *full, rest = writes_before_each(opcodes)
        assert full
        assert set(full) == {7}
        assert rest <= 7
    assert sum(opcodes.count(FLUSH) for opcodes in seen) == stats.flushes


def test_a_failed_flush_is_an_error(device: FakeDevice) -> None:
    device.spoil = failing(FLUSH)
    stats = run([device], 10)
    assert (stats.errors, stats.first_error, stats.flushes, stats.ios) == (5, 0x280, 0, 60)
    assert not stats.clean


def test_a_failed_write_counts_towards_a_flush(device: FakeDevice) -> None:
    device.spoil = failing(WRITE)
    stats = run([device], 10)
    assert (stats.errors, stats.flushes, stats.ios) == (60, 5, 0)


def test_what_is_flushed_verifies(device: FakeDevice) -> None:
    verifier = Verifier(64, LBA)
    stats = run([device], 3, ios=600, writes=ALL // 2, check=verifier)
    assert stats.clean
    assert stats.flushes > 50
    for lba in range(64):
        assert verifier.check(lba, bytes(device.disk[lba * LBA : (lba + 1) * LBA])) is None


def test_a_rate_changes_nothing_about_flushes(device: FakeDevice) -> None:
    seen = watch(device)
    stats = run([device], 1, ios=100, rate=1000.0)
    assert seen == [WRITE, *[FLUSH, WRITE] * 99]
    assert (stats.ios, stats.flushes) == (100, 99)
