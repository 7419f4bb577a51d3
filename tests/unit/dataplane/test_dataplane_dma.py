"""The DMA table: what the client maps, takes away while it is in use, and shrinks."""

import os
import random
import threading
import time
from pathlib import Path

import pytest
from dataplane_host import MIB, PAGE, READ, WRITE, Host, Queue, sqe, wait_until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shadowbell.dataplane import IOThread, live_objects
from shadowbell.dataplane.dma import DmaError
from shadowbell.nvme.status import Status

BASE = 1 << 40


def mappings() -> int:
    return live_objects().get("mappings", 0)


@pytest.mark.parametrize(
    ("iova", "length", "offset"),
    [
        (BASE, 0, 0),
        (BASE + 1, PAGE, 0),
        (BASE, PAGE + 512, 0),
        (BASE, PAGE, 512),
        (BASE, 17 * MIB, 0),
        (BASE, PAGE, 16 * MIB),
        (BASE, PAGE, (1 << 64) - PAGE),
        ((1 << 64) - PAGE, 2 * PAGE, 0),
        (0, PAGE, 0),
        (16 * MIB - PAGE, 2 * PAGE, 0),
        (0, 1 << 63, 0),
    ],
)
def test_maps_that_cant_be(host: Host, iova: int, length: int, offset: int) -> None:
    with pytest.raises(ValueError, match="map"):
        host.engine.dma_map(iova, length, host.fd, offset, 3)
    assert host.engine.dma_read(0, 8) == bytes(8)


def test_descriptors_that_cant_be(host: Host) -> None:
    with open("/proc/self/maps") as file, pytest.raises((OSError, ValueError)):
        host.engine.dma_map(BASE, PAGE, file.fileno(), 0, 3)
    reading, writing = os.pipe()
    for fd in (reading, writing, 9999):
        with pytest.raises(OSError):  # noqa: PT011
            host.engine.dma_map(BASE, PAGE, fd, 0, 3)
    os.close(reading)
    os.close(writing)


def test_the_last_page_of_all(host: Host) -> None:
    top = (1 << 64) - PAGE
    host.engine.dma_map(top, PAGE, host.fd, 0, 3)
    host.engine.dma_write(top + 8, b"top")
    assert host.read(8, 3) == b"top"
    host.engine.dma_unmap(top, PAGE)


def test_unmaps_that_cant_be(host: Host) -> None:
    host.engine.dma_map(BASE, 4 * PAGE, host.fd, 0, 3)
    for iova, length in (
        (BASE + 8 * PAGE, PAGE),
        (BASE, 0),
        (BASE, PAGE),
        (BASE + PAGE, PAGE),
        (BASE + PAGE, 8 * PAGE),
        (BASE - PAGE, 2 * PAGE),
        (BASE + 2 * PAGE, 2 * PAGE),
    ):
        with pytest.raises(ValueError, match="unmap"):
            host.engine.dma_unmap(iova, length)
    assert host.engine.dma_read(BASE, 4 * PAGE)
    host.engine.dma_unmap(BASE - PAGE, 8 * PAGE)
    with pytest.raises(DmaError):
        host.engine.dma_read(BASE, 1)


def test_one_file_is_mapped_once(host: Host) -> None:
    before = mappings()
    for i in range(100):
        fd = os.dup(host.fd)
        host.engine.dma_map(BASE + i * PAGE, PAGE, fd, i * PAGE, 3)
        os.close(fd)
    assert mappings() == before
    other = os.memfd_create("other")
    os.ftruncate(other, MIB)
    host.engine.dma_map(2 * BASE, PAGE, other, 0, 3)
    host.engine.dma_map(2 * BASE + PAGE, PAGE, other, 0, 3)
    os.close(other)
    assert mappings() == before + 1
    host.engine.dma_unmap(2 * BASE, PAGE)
    assert mappings() == before + 1
    host.engine.dma_unmap(2 * BASE + PAGE, PAGE)
    assert mappings() == before
    host.engine.dma_unmap_all()
    assert mappings() == before - 1


def test_a_file_that_grew(host: Host) -> None:
    os.ftruncate(host.fd, 32 * MIB)
    host.engine.dma_map(BASE, PAGE, host.fd, 31 * MIB, 3)
    host.engine.dma_write(BASE, b"grown")
    assert os.pread(host.fd, 5, 31 * MIB) == b"grown"


def test_a_read_only_descriptor_allows_reading(host: Host) -> None:
    fd = os.open(f"/proc/self/fd/{host.fd}", os.O_RDONLY)
    other = os.memfd_create("other")
    os.ftruncate(other, PAGE)
    read_only = os.open(f"/proc/self/fd/{other}", os.O_RDONLY)
    host.engine.dma_map(BASE, PAGE, read_only, 0, 3)
    assert host.engine.dma_read(BASE, 8) == bytes(8)
    with pytest.raises(DmaError):
        host.engine.dma_write(BASE, b"x")
    for each in (fd, other, read_only):
        os.close(each)


def test_copies_cross_maps(host: Host) -> None:
    host.engine.dma_map(BASE, PAGE, host.fd, 8 * PAGE, 3)
    host.engine.dma_map(BASE + PAGE, PAGE, host.fd, 2 * PAGE, 3)
    data = random.Random(1).randbytes(2 * PAGE)
    host.engine.dma_write(BASE, data)
    assert host.read(8 * PAGE, PAGE) + host.read(2 * PAGE, PAGE) == data
    assert host.engine.dma_read(BASE + 100, PAGE) == data[100 : PAGE + 100]
    with pytest.raises(DmaError):
        host.engine.dma_read(BASE + PAGE, PAGE + 1)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 24), st.integers(1, 8)), min_size=1, max_size=60
    )
)
def test_any_sequence_of_maps(host: Host, steps: list[tuple[bool, int, int]]) -> None:
    """Against a dictionary: a map overlaps nothing, an unmap holds whole maps and at least one."""
    maps: dict[int, int] = {}
    for mapping, start, count in steps:
        iova, length = BASE + start * PAGE, count * PAGE
        touched = {a: n for a, n in maps.items() if a < iova + length and iova < a + n}
        if mapping:
            if touched:
                with pytest.raises(ValueError, match="overlaps"):
                    host.engine.dma_map(iova, length, host.fd, start * PAGE, 3)
            else:
                host.engine.dma_map(iova, length, host.fd, start * PAGE, 3)
                maps[iova] = length
        elif not touched or any(a < iova or a + n > iova + length for a, n in touched.items()):
            with pytest.raises(ValueError, match="unmap"):
                host.engine.dma_unmap(iova, length)
        else:
            host.engine.dma_unmap(iova, length)
            for a in touched:
                del maps[a]
        for page in range(34):
            address = BASE + page * PAGE
            if any(a <= address < a + n for a, n in maps.items()):
                host.engine.dma_read(address, 1)
            else:
                with pytest.raises(DmaError):
                    host.engine.dma_read(address, 1)
    for iova, length in maps.items():
        host.engine.dma_unmap(iova, length)


def test_65535_maps(host: Host) -> None:
    """As many as the version reply allows, page by page as a vIOMMU makes them."""
    order = list(range(65534))
    random.Random(1).shuffle(order)
    for i in order:
        host.engine.dma_map(BASE + 2 * i * PAGE, PAGE, host.fd, i % 4096 * PAGE, 3)
    with pytest.raises(ValueError, match="too many"):
        host.engine.dma_map(1 << 60, PAGE, host.fd, 0, 3)
    for i in (0, 1, 4095, 65533):
        host.engine.dma_write(BASE + 2 * i * PAGE, i.to_bytes(4, "little"))
        assert host.read(i % 4096 * PAGE, 4) == i.to_bytes(4, "little")
    host.engine.dma_unmap_all()


# --- queues and commands while maps change ------------------------------------------------------


def test_queue_pages_away_and_back(iothreads: list[IOThread]) -> None:
    """All memory is unmapped and mapped again with commands waiting: none is lost."""
    host = Host(iothreads)
    backend = host.attach_memory()
    queue = host.queue(1)
    buffer = host.take(PAGE)
    for turn in range(40):
        host.engine.dma_unmap(0, host.size)
        queue.submit(*(sqe(READ, cid=i, prp1=buffer) for i in range(20)))
        time.sleep(0.0005)
        assert queue.peek() is None
        host.engine.dma_map(0, host.size, host.fd, 0, 3)
        done = queue.drain(20)
        assert [(c.cid, c.status) for c in done] == [(i, 0) for i in range(20)], turn
    host.close()
    backend.close()


def test_data_away(host: Host, disk: Queue) -> None:
    host.engine.dma_map(BASE, PAGE, host.fd, host.take(PAGE), 3)
    assert disk.run(sqe(READ, prp1=BASE)).status == 0
    host.engine.dma_unmap(BASE, PAGE)
    done = disk.run(sqe(READ, prp1=BASE))
    assert done.status == Status.DATA_TRANSFER_ERROR  # worth another try: no Do Not Retry


def test_nothing_is_written_after_an_unmap(host: Host, tmp_path: Path) -> None:
    """An unmap is answered when no read in flight can touch the range any more."""
    from shadowbell.block import open_backend

    path = tmp_path / "disk.img"
    path.write_bytes(b"d" * 8 * MIB)
    backend = open_backend("file", path=str(path), size=None, lba=512, read_only=False)
    host.attach(backend)
    queue = host.queue(1)
    memory = host.take(4 * MIB)
    lists = [host.prps(BASE + (i % 4) * MIB, MIB) for i in range(16)]
    for _ in range(10):
        host.engine.dma_map(BASE, 4 * MIB, host.fd, memory, 3)
        queue.submit(
            *(
                sqe(READ, cid=i, lba=i * 512, blocks=2048, prp1=a, prp2=b)
                for i, (a, b) in enumerate(lists)
            )
        )
        host.engine.dma_unmap(BASE, 4 * MIB)
        host.write(memory, bytes(4 * MIB))
        done = queue.drain(16)
        assert {c.code for c in done} <= {0, Status.DATA_TRANSFER_ERROR}
        assert host.read(memory, 4 * MIB) == bytes(4 * MIB)
    host.engine.close()
    backend.close()


# --- SIGBUS --------------------------------------------------------------------------------------


def shrinking(host: Host, size: int = MIB) -> int:
    fd = os.memfd_create("shrinks")
    os.ftruncate(fd, size)
    host.engine.dma_map(BASE, size, fd, 0, 3)
    return fd


@pytest.mark.parametrize("opcode", [READ, WRITE])
def test_a_client_that_shrinks_its_memory(
    iothreads: list[IOThread], host: Host, disk: Queue, opcode: int
) -> None:
    other = Host(iothreads)
    backend = other.attach_memory()
    queue = other.queue(1)
    fd = shrinking(host)
    stop = threading.Event()

    def unharmed() -> None:
        buffer = other.take(PAGE)
        while not stop.is_set():
            assert queue.run(sqe(READ, prp1=buffer)).status == 0

    bystander = threading.Thread(target=unharmed)
    bystander.start()
    assert disk.run(sqe(opcode, blocks=8, prp1=BASE)).status == 0
    os.ftruncate(fd, 0)
    disk.submit(sqe(opcode, blocks=8, prp1=BASE))
    assert host.events("bus-error")
    stop.set()
    bystander.join()
    assert not [e for e in other.engine.take_events() if e.kind == "bus-error"]
    assert queue.run(sqe(READ, prp1=other.take(PAGE))).status == 0
    os.close(fd)
    other.close()
    backend.close()


def test_the_control_plane_meets_shrunken_memory(host: Host) -> None:
    """With no queue and no IOThread that would notice."""
    fd = shrinking(host)
    os.ftruncate(fd, 0)
    host.engine.clear_notify()
    assert host.engine.dma_read(BASE, 8) == bytes(8)
    assert host.notified(1)
    assert [e.kind for e in host.engine.take_events()] == ["bus-error"]
    os.close(fd)


def test_an_admin_queue_in_shrunken_memory(host: Host) -> None:
    fd = shrinking(host)
    host.engine.open_admin(BASE, 16, BASE + PAGE, 16)
    os.ftruncate(fd, 0)
    host.engine.clear_notify()
    host.bell(0, 1)
    wait_until(lambda: host.engine.fetch_admin() is not None)
    host.engine.complete_admin(0, 0)
    assert host.notified(1)
    assert host.events("bus-error")
    os.close(fd)


def test_memory_that_failed_isnt_used_again(host: Host) -> None:
    fd = shrinking(host)
    host.engine.dma_map(2 * BASE, PAGE, host.fd, 0, 3)
    os.ftruncate(fd, 0)
    host.engine.dma_read(BASE, 8)
    os.ftruncate(fd, MIB)
    host.engine.dma_map(3 * BASE, PAGE, fd, 0, 3)
    host.engine.dma_write(3 * BASE, b"anew")
    assert os.pread(fd, 4, 0) == b"anew"
    os.close(fd)
