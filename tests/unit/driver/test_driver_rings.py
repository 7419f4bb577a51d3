"""Rings, doorbells and Linux' comparison."""

import os
import socket
import struct

import pytest
from fake_device import FakeDevice
from hypothesis import given
from hypothesis import strategies as st

from shadowbell.driver.hostqueue import (
    CompletionRing,
    DeviceGone,
    ProtocolError,
    SubmissionRing,
    shadow_need_event,
)
from shadowbell.driver.memory import PAGE, Arena
from shadowbell.nvme.doorbells import must_ring

U16 = st.integers(0, 0xFFFF)
SQE = bytes([2]) + bytes(63)


@given(U16, U16, U16)
def test_comparison_is_the_specification_s(event: int, new: int, old: int) -> None:
    assert shadow_need_event(event, new, old) == must_ring(event, new, old)


def test_comparison_rings_only_when_passed() -> None:
    assert shadow_need_event(5, 6, 5)
    assert not shadow_need_event(4, 6, 5)
    assert shadow_need_event(0xFFFF, 0, 0xFFFF)
    assert not shadow_need_event(7, 7, 7)


@pytest.fixture
def arena() -> Arena:
    return Arena(1 << 20)


def pair(arena: Arena, fd: int, entries: int = 4) -> tuple[SubmissionRing, CompletionRing]:
    cq = CompletionRing(1, entries, arena.allocate(PAGE).address, fd, 0x100C)
    return SubmissionRing(1, entries, arena.allocate(PAGE).address, fd, 0x1008, cq), cq


def test_trapped_doorbell_is_one_posted_message(arena: Arena) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ring, _ = pair(arena, ours.fileno())
        ring.push(SQE)
        ring.push(SQE)
        ring.ring()
        message = theirs.recv(4096)
        assert message == struct.pack("<HHIIIQIII", 0, 10, 36, 0x10, 0, 0x1008, 0, 4, 2)
        assert ring.counts == {"registers": 1, "wakeups": 0, "stores": 0, "updates": 1}


def test_lost_connection_is_told(arena: Arena) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        ring, _ = pair(arena, ours.fileno())
        ring.push(SQE)
        with pytest.raises(DeviceGone):
            ring.ring()


def test_shadow_rings_when_event_index_is_passed(arena: Arena) -> None:
    page = arena.allocate(PAGE)
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    ring, _ = pair(arena, -1)
    ring.shadow(page.address, page.address + 4)
    ring.ioeventfd(fd)
    ring.push(SQE)
    ring.ring()  # EventIdx 0, tail 0 -> 1: passes it
    assert os.eventfd_read(fd) == 1
    ring.push(SQE)
    ring.ring()  # EventIdx still 0, tail 1 -> 2: doesn't
    assert struct.unpack_from("<I", page.view) == (2,)
    struct.pack_into("<I", page.view, 4, 2)
    ring.push(SQE)
    ring.ring()
    assert os.eventfd_read(fd) == 1
    assert ring.counts == {"registers": 0, "wakeups": 2, "stores": 0, "updates": 3}
    os.close(fd)


def test_queue_is_full_one_short_of_its_entries(arena: Arena) -> None:
    ring, _ = pair(arena, -1, entries=3)
    assert {ring.push(SQE), ring.push(SQE)} == {0, 1}
    assert (ring.running, ring.room) == (2, 0)
    with pytest.raises(BlockingIOError):
        ring.push(SQE)


def test_killed_queue_takes_no_command(arena: Arena) -> None:
    ring, _ = pair(arena, -1)
    ring.kill()
    with pytest.raises(DeviceGone):
        ring.push(SQE)


def test_commands_complete_over_many_laps(device: FakeDevice) -> None:
    for _ in range(50):
        cid = device.ring.push(SQE[:24] + struct.pack("<Q", device.page.iova + 64) + bytes(32))
        device.ring.ring()
        assert device.completions.wait(5)
        assert device.completions.reap() == [(1, cid, 0, 0, 0)]
    assert device.ring.tail == 50 % device.entries == device.completions.head


def test_completion_nobody_asked_for_is_an_error(arena: Arena) -> None:
    ring, cq = pair(arena, -1)
    memory = arena.allocate(PAGE)
    lonely = CompletionRing(2, 4, memory.address, -1, 0)
    lonely.map(arena.allocate(PAGE).address)
    struct.pack_into("<IIHHHH", memory.view, 0, 0, 0, 0, 9, 0, 1)
    with pytest.raises(ProtocolError, match="unknown queue 9"):
        lonely.reap()
    assert lonely.head == 1
    assert ring.running == 0
    assert cq.reap() == []


def test_wait_gives_up(arena: Arena) -> None:
    _, cq = pair(arena, -1)
    assert not cq.wait(0.01)


def test_interrupts_are_counted(arena: Arena) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    cq = CompletionRing(1, 4, arena.allocate(PAGE).address, -1, 0, fd)
    os.eventfd_write(fd, 3)
    assert cq.interrupts == 3
    assert cq.interrupts == 3
    os.close(fd)
