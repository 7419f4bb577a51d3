"""The host's memory as registered buffers: used, kept apart, and given up."""

import ctypes
import logging
import os
import random
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dataplane_host import (
    FUA,
    MIB,
    PAGE,
    READ,
    WRITE,
    Host,
    Queue,
    running,
    sealed,
    sqe,
    wait_until,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_block_io import SIZE, Disk, Steps, sequences, served, take_steps

from shadowbell.block import Backend, open_backend
from shadowbell.dataplane import IOThread, Pins
from shadowbell.nvme.status import Status

BASE = 1 << 40
CHUNK = 64 * MIB
LBA = 4096


def image(folder: Path, name: str = "disk.img", *, polled: bool = False) -> Backend:
    """Each 4 KiB block begins with its number."""
    path = folder / name
    path.write_bytes(b"".join(struct.pack("<Q", n) * 512 for n in range(SIZE // LBA)))
    return open_backend("file", path=str(path), size=None, lba=LBA, read_only=False, polled=polled)


def pinned_kib() -> int:
    """What this process has pinned."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmPin")).split()[1])


@pytest.fixture
def iothreads() -> Iterator[list[IOThread]]:
    with running(2) as threads:
        yield threads


@pytest.fixture
def pins(iothreads: list[IOThread]) -> Iterator[Pins]:
    """All is given back when its engines are closed."""
    made = Pins(iothreads)
    yield made
    made.close()
    assert pinned_kib() == 0


@pytest.fixture
def host(iothreads: list[IOThread], pins: Pins) -> Iterator[Host]:
    made = Host(iothreads, pins=pins)
    wait_until(lambda: made.engine.pinned_bytes == made.size)
    yield made
    made.close()


@pytest.fixture
def disk(host: Host, tmp_path: Path) -> Iterator[Queue]:
    backend = image(tmp_path)
    host.attach(backend, lba=LBA)
    yield host.queue(1)
    host.engine.close()
    backend.close()


@pytest.fixture
def fixed(iothreads: list[IOThread]) -> Callable[[], int]:
    """Transfers to registered memory since it was last asked."""
    last = 0

    def count() -> int:
        nonlocal last
        before, last = last, sum(thread.fixed_transfers for thread in iothreads)
        return last - before

    return count


def number_at(host: Host, iova: int) -> int:
    return int(struct.unpack("<Q", host.read(iova, 8))[0])


# --- what goes through registered memory ----------------------------------------------------------


@pytest.fixture(params=[512, 4096])
def any_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    lba = request.param
    backend = open_backend("file", path=str(path), size=None, lba=lba, read_only=False)
    with served(backend, lba, fixed=True) as made:
        wait_until(lambda: made.host.engine.pinned_bytes > 0)
        yield made


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=sequences, seed=st.integers(0, 1 << 30))
def test_any_sequence(any_disk: Disk, steps: Steps, seed: int) -> None:
    take_steps(any_disk, steps, seed)


@pytest.mark.parametrize("iopoll", [False, True])
@pytest.mark.parametrize("sqpoll", [False, True])
def test_other_rings(tmp_path: Path, sqpoll: bool, iopoll: bool) -> None:
    """Files whose devices can't be polled go through the main ring, and others through both."""
    with served(image(tmp_path), LBA, sqpoll=sqpoll, iopoll=iopoll, fixed=True) as disk:
        wait_until(lambda: disk.host.engine.pinned_bytes > 0)
        data = random.Random(1).randbytes(MIB)
        for bits in (0, FUA):
            disk.write(1, data, bits=bits)
            assert disk.read(1, MIB // LBA) == data


def test_transfers_of_one_piece_and_of_many(
    host: Host, disk: Queue, fixed: Callable[[], int]
) -> None:
    pages = [host.take(2 * PAGE, align=2 * PAGE) for _ in range(8)]
    assert disk.run(sqe(READ, lba=5, prp1=pages[0])).status == 0
    assert number_at(host, pages[0]) == 5
    assert fixed() == 1
    list_page = host.take(PAGE, align=PAGE)
    host.write(list_page, struct.pack("<7Q", *pages[1:]))
    assert disk.run(sqe(READ, lba=8, blocks=8, prp1=pages[0], prp2=list_page)).status == 0
    assert [number_at(host, page) for page in pages] == list(range(8, 16))
    vectored = fixed()  # since Linux 6.15
    assert vectored in (0, 1)
    host.write(pages[3], b"w" * PAGE)
    assert disk.run(sqe(WRITE, lba=0, blocks=8, prp1=pages[0], prp2=list_page)).status == 0
    assert disk.run(sqe(READ, lba=3, prp1=pages[0])).status == 0
    assert host.read(pages[0], PAGE) == b"w" * PAGE
    assert fixed() == vectored + 1


def test_what_a_bounce_buffer_carries_isnt_fixed(
    host: Host, disk: Queue, fixed: Callable[[], int]
) -> None:
    buffer = host.take(2 * PAGE, align=PAGE)
    assert disk.run(sqe(READ, lba=9, prp1=buffer + 4, prp2=buffer + PAGE)).status == 0
    assert number_at(host, buffer + 4) == 9
    assert fixed() in (0, 1)  # where O_DIRECT takes the address there is nothing to bounce


def test_pieces_in_two_buffers_go_the_plain_way(
    host: Host, disk: Queue, fixed: Callable[[], int], pins: Pins
) -> None:
    """Two files, and the border between two chunks of one."""
    fd = sealed(CHUNK + MIB)
    host.engine.dma_map(BASE, CHUNK + MIB, fd, 0, 3)
    wait_until(lambda: host.engine.pinned_bytes == host.size + CHUNK + MIB)
    own = host.take(PAGE, align=PAGE)
    border = BASE + CHUNK - PAGE
    for prps in ((own, border), (border, own), (border, border + PAGE)):
        assert disk.run(sqe(READ, lba=20, blocks=2, prp1=prps[0], prp2=prps[1])).status == 0
        for number, iova in enumerate(prps, 20):
            assert struct.unpack("<Q", host.engine.dma_read(iova, 8))[0] == number
    assert fixed() == 0
    for iova in (border, border + PAGE):
        assert disk.run(sqe(READ, lba=21, prp1=iova)).status == 0
        assert struct.unpack("<Q", host.engine.dma_read(iova, 8))[0] == 21
    assert fixed() == 2
    host.engine.dma_unmap(BASE, CHUNK + MIB)
    os.close(fd)


def test_two_clients_on_the_same_rings(
    iothreads: list[IOThread], pins: Pins, host: Host, disk: Queue, tmp_path: Path
) -> None:
    """One goes, and the other's buffers are still its own."""
    buffer = host.take(PAGE, align=PAGE)
    for turn in range(3):
        other = Host(iothreads, pins=pins, size=CHUNK + 16 * MIB)
        backend = image(tmp_path, f"{turn}.img")
        other.attach(backend, lba=LBA)
        queue = other.queue(1)
        theirs = other.take(PAGE, align=PAGE)
        wait_until(lambda other=other: other.engine.pinned_bytes == other.size)  # type: ignore[misc]
        for number in range(5):
            assert queue.run(sqe(READ, lba=number, prp1=theirs)).status == 0
            assert disk.run(sqe(READ, lba=100 + number, prp1=buffer)).status == 0
            assert number_at(other, theirs) == number
            assert number_at(host, buffer) == 100 + number
        other.close()
        backend.close()
        assert disk.run(sqe(READ, lba=200 + turn, prp1=buffer)).status == 0
        assert number_at(host, buffer) == 200 + turn
        wait_until(lambda: pinned_kib() == host.size // 1024)


# --- memory that comes and goes -------------------------------------------------------------------


def test_memory_is_let_go_when_its_client_goes(iothreads: list[IOThread], pins: Pins) -> None:
    host = Host(iothreads, pins=pins)
    wait_until(lambda: host.engine.pinned_bytes == host.size)
    assert pinned_kib() == host.size // 1024
    host.close()
    wait_until(lambda: pinned_kib() == 0)
    wait_until(lambda: "memfd:sealed" not in Path("/proc/self/maps").read_text())


def test_other_maps_of_the_same_file_cost_nothing(host: Host, disk: Queue) -> None:
    host.engine.dma_map(BASE, MIB, host.fd, MIB, 3)
    assert host.engine.pinned_bytes == host.size
    host.engine.dma_unmap(BASE, MIB)
    assert host.engine.pinned_bytes == host.size
    assert pinned_kib() == host.size // 1024


def test_another_file_at_the_same_address(
    host: Host, disk: Queue, fixed: Callable[[], int]
) -> None:
    """Our address of the next file is mostly the last one's: none may be mistaken for the other."""
    draw = random.Random(1)
    total = 0
    for turn in range(60):
        fd = sealed(MIB)
        host.engine.dma_map(BASE, MIB, fd, 0, 3)
        if draw.random() < 0.5:
            wait_until(lambda: host.engine.pinned_bytes == host.size + MIB)
        for page in range(8):
            assert disk.run(sqe(READ, lba=turn + page, prp1=BASE + page * PAGE)).status == 0
            assert struct.unpack("<Q", os.pread(fd, 8, page * PAGE))[0] == turn + page
        total += fixed()
        host.engine.dma_unmap(BASE, MIB)
        assert disk.run(sqe(READ, prp1=BASE)).code == Status.DATA_TRANSFER_ERROR
        os.close(fd)
    assert total > 100


def test_maps_change_while_io_runs(host: Host, disk: Queue, fixed: Callable[[], int]) -> None:
    buffer = host.take(PAGE, align=PAGE)
    stop = threading.Event()
    failed: list[int] = []
    rounds = 0

    def read() -> None:
        nonlocal rounds
        while not stop.is_set():
            number = rounds % (SIZE // LBA)
            status = disk.run(sqe(READ, lba=number, prp1=buffer)).status
            if status or number_at(host, buffer) != number:
                failed.append(number)
            rounds += 1

    reader = threading.Thread(target=read)
    reader.start()
    fds = [sealed(8 * MIB) for _ in range(4)]
    end = time.monotonic() + 2
    while time.monotonic() < end:
        for number, fd in enumerate(fds):
            host.engine.dma_map(BASE + number * 8 * MIB, 8 * MIB, fd, 0, 3)
        for number in range(len(fds)):
            host.engine.dma_unmap(BASE + number * 8 * MIB, 8 * MIB)
    stop.set()
    reader.join()
    for fd in fds:
        os.close(fd)
    assert not failed
    assert rounds > 100
    assert fixed() == rounds
    wait_until(lambda: pinned_kib() == host.size // 1024)


def test_a_client_that_goes_while_its_memory_is_pinned(
    iothreads: list[IOThread], pins: Pins, tmp_path: Path
) -> None:
    """Gigabytes take seconds to pin; nobody waits, and I/O goes on."""
    host = Host(iothreads, pins=pins, size=4 << 30)
    backend = image(tmp_path)
    host.attach(backend, lba=LBA)
    queue = host.queue(1)
    buffer = host.take(PAGE, align=PAGE)
    for number in range(50):
        assert queue.run(sqe(READ, lba=number, prp1=buffer)).status == 0
        assert number_at(host, buffer) == number
    assert host.engine.pinned_bytes == 0
    host.close()
    backend.close()
    wait_until(lambda: "memfd:sealed" not in Path("/proc/self/maps").read_text(), 2)
    assert pinned_kib() == 0


# --- memory that isn't registered -----------------------------------------------------------------


def test_memory_that_can_shrink_isnt_registered(
    host: Host, disk: Queue, fixed: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    """It could grow again with other pages than those that are pinned."""
    before = host.engine.pinned_bytes
    with caplog.at_level(logging.WARNING, "shadowbell"):
        for number in range(2):
            fd = os.memfd_create("shrinks")
            os.ftruncate(fd, MIB)
            host.engine.dma_map(BASE + number * MIB, MIB, fd, 0, 3)
            assert disk.run(sqe(READ, lba=3, prp1=BASE + number * MIB)).status == 0
            os.ftruncate(fd, 0)
            os.ftruncate(fd, MIB)
            assert disk.run(sqe(READ, lba=4, prp1=BASE + number * MIB)).status == 0
            assert struct.unpack("<Q", os.pread(fd, 8, 0))[0] == 4
            os.close(fd)
    assert fixed() == 0
    assert host.engine.pinned_bytes == before
    (record,) = caplog.records
    assert "memory-backend-memfd" in record.getMessage()


def test_read_only_memory_isnt_registered(
    host: Host, disk: Queue, fixed: Callable[[], int]
) -> None:
    fd = sealed(MIB)
    os.pwrite(fd, b"r" * PAGE, 0)
    reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    before = host.engine.pinned_bytes
    host.engine.dma_map(BASE, MIB, reading, 0, 1)
    assert disk.run(sqe(WRITE, lba=3, prp1=BASE)).status == 0
    assert fixed() == 0
    assert host.engine.pinned_bytes == before
    os.close(reading)
    os.close(fd)


class SigInfo(ctypes.Structure):
    """siginfo_t of a fault."""

    _fields_ = (
        ("number", ctypes.c_int),
        ("error", ctypes.c_int),
        ("code", ctypes.c_int),
        ("address", ctypes.c_uint64),
        ("rest", ctypes.c_uint8 * 104),
    )


def fail_memory(inode: int) -> None:
    """What a machine check does to the second mapping of a file in this process: the engine's."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split()
        if int(fields[4]) == inode:
            info = SigInfo(signal.SIGBUS, 0, 4, int(fields[0].split("-")[0], 16))
            result = ctypes.CDLL(None).syscall(
                297, os.getpid(), threading.get_native_id(), signal.SIGBUS, ctypes.byref(info)
            )
            assert result == 0
            return
    raise AssertionError("the file isn't mapped")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="a system call by number")
def test_memory_that_fails_is_given_up(host: Host, disk: Queue, fixed: Callable[[], int]) -> None:
    """Zero pages take its place, and then it is those that are written."""
    fd = sealed(MIB)
    host.engine.dma_map(BASE, MIB, fd, 0, 3)
    wait_until(lambda: host.engine.pinned_bytes == host.size + MIB)
    assert disk.run(sqe(READ, lba=3, prp1=BASE)).status == 0
    assert fixed() == 1
    fail_memory(os.fstat(fd).st_ino)
    assert host.engine.dma_read(BASE, 8) == bytes(8)
    assert host.events("bus-error")
    wait_until(lambda: host.engine.pinned_bytes == host.size)
    assert disk.run(sqe(READ, lba=4, prp1=BASE)).status == 0
    assert fixed() == 0
    assert struct.unpack("<Q", host.engine.dma_read(BASE, 8))[0] == 4
    assert struct.unpack("<Q", os.pread(fd, 8, 0))[0] == 3
    os.close(fd)
