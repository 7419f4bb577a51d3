"""What is particular to files: flushes that are needed, registered files, devices, polling."""

import os
import random
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from dataplane_host import FLUSH, FUA, MIB, WRITE, sqe
from test_block_io import SIZE, served

from shadowbell.block import Backend, open_backend
from shadowbell.block.file import FileBackend, in_memory
from shadowbell.block.rings import probe_polled
from shadowbell.errors import UserError
from shadowbell.nvme.status import Status


def image(folder: Path, fill: bytes = b"\0") -> Path:
    path = folder / "disk.img"
    path.write_bytes(fill * SIZE)
    return path


def open_file(path: Path, *, polled: bool = False, lba: int = 512) -> Backend:
    return open_backend("file", path=str(path), size=None, lba=lba, read_only=False, polled=polled)


@pytest.fixture
def no_slots_left() -> Iterator[None]:
    """Every slot for registered files is taken, so that the next file goes by its descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    zero = os.open("/dev/zero", os.O_RDWR)
    holders = [
        FileBackend(os.dup(zero), MIB, memory_align=1, length_align=1, read_only=False)
        for _ in range(1024)
    ]
    os.close(zero)
    yield
    for holder in holders:
        holder.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_only_what_is_volatile_is_flushed(tmp_path: Path, no_slots_left: None) -> None:
    """The descriptor is changed for one that can't be flushed: what still succeeds wasn't sent."""
    good, bad = os.open(image(tmp_path), os.O_RDWR), os.open("/dev/zero", os.O_RDWR)
    fd = os.dup(bad)
    backend = FileBackend(fd, SIZE, memory_align=1, length_align=1, read_only=False)
    with served(backend, 512) as disk:

        def flush() -> int:
            return disk.queue.run(sqe(FLUSH)).code

        assert flush() != 0  # what was written before it was opened
        assert flush() != 0  # and a flush that fails makes nothing stable
        os.dup2(good, fd)
        assert flush() == 0
        os.dup2(bad, fd)
        assert flush() == 0
        assert disk.move(WRITE, 0, 8, bits=FUA) == 0
        assert flush() == 0
        assert disk.move(WRITE, 0, 8) == 0
        assert flush() != 0
        assert disk.move(WRITE, 0, 8, bits=FUA) == 0
        assert flush() != 0
        os.dup2(good, fd)
        assert flush() == 0
        disk.zero(0, 8, 0)
        os.dup2(bad, fd)
        assert flush() != 0
        os.dup2(good, fd)
        assert flush() == 0
        disk.zero(0, 8, FUA)
        os.dup2(bad, fd)
        assert flush() == 0
        os.dup2(good, fd)
        disk.discard(0, 8)
        os.dup2(bad, fd)
        assert flush() != 0
    os.close(good)
    os.close(bad)


def test_flushes_beside_writes(tmp_path: Path) -> None:
    """Flushes and writes of one batch, many times over: each ends well, and all is there."""
    draw = random.Random(7)
    with served(open_file(image(tmp_path)), 4096) as disk:
        area = disk.host.take(32 * 4096)
        for _ in range(50):
            data = draw.randbytes(32 * 4096)
            disk.host.write(area, data)
            commands = [
                sqe(
                    WRITE, cid=i, lba=i, blocks=1, prp1=area + i * 4096, cdw12=draw.choice((0, FUA))
                )
                for i in range(32)
            ]
            for i in range(16):
                commands.insert(draw.randrange(len(commands)), sqe(FLUSH, cid=100 + i))
            disk.queue.submit(*commands)
            assert {done.code for done in disk.queue.drain(48)} == {0}
            disk.contents[: len(data)] = data
        assert disk.read(0, 32) == disk.expected(0, 32)


def test_a_detached_file_is_let_go(tmp_path: Path) -> None:
    """A ring that kept it would keep its lock too."""
    path = image(tmp_path, b"d")
    backend = open_file(path)
    with served(backend, 512) as disk:
        assert disk.read(3, 8) == b"d" * 4096
        for _ in range(3):
            disk.host.engine.detach_namespace(1)
            backend.close()
            backend = open_file(path)
            disk.host.attach(backend)
            disk.write(3, b"e" * 4096)
            assert disk.read(3, 8) == b"e" * 4096
        disk.host.engine.detach_namespace(1)
        backend.close()


@pytest.mark.parametrize(("sqpoll", "iopoll"), [(True, False), (False, True), (True, True)])
def test_other_rings_serve_any_file(tmp_path: Path, sqpoll: bool, iopoll: bool) -> None:
    with served(open_file(image(tmp_path)), 512, sqpoll=sqpoll, iopoll=iopoll) as disk:
        data = random.Random(1).randbytes(MIB)
        for bits in (0, FUA):
            disk.write(1, data, bits=bits)
            disk.write(5, data[:4608], offset=0x204, bits=bits)
            assert disk.read(0, 2048) == disk.expected(0, 2048)
        assert disk.queue.run(sqe(FLUSH)).code == 0
        disk.zero(3, 9, 0)
        disk.discard(100, 1000)
        assert disk.read(0, 2048, 0x204) == disk.expected(0, 2048)


def test_polling_where_the_device_can(tmp_path: Path) -> None:
    path = image(tmp_path)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    error = probe_polled(fd, 4096)
    os.close(fd)
    if error:
        with pytest.raises(UserError, match=r"can't be polled.*--iopoll"):
            open_file(path, polled=True)
        return
    with served(open_file(path, polled=True), 512, iopoll=True) as disk:
        data = random.Random(1).randbytes(MIB)
        disk.write(1, data)
        disk.write(5, data[:4608], offset=0x204, bits=FUA)
        assert disk.queue.run(sqe(FLUSH)).code == 0
        assert disk.read(0, 2048) == disk.expected(0, 2048)


def test_files_in_memory_cant_be_polled() -> None:
    path = Path(f"/dev/shm/shadowbell-test-polled-{os.getpid()}.img")
    path.write_bytes(bytes(SIZE))
    try:
        with path.open() as file:
            assert in_memory(file.fileno())
        with pytest.raises(UserError, match="can't be polled"):
            open_file(path, polled=True)
    finally:
        path.unlink()


# --- block devices: a loop device, where we may make one


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A loop device and the file behind it."""
    losetup = shutil.which("losetup") or "/sbin/losetup"
    backing = image(tmp_path, b"d")
    made = subprocess.run(
        [losetup, "--find", "--show", str(backing)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip("no loop devices for us")
    device = Path(made.stdout.strip())
    yield device, backing
    subprocess.run([losetup, "--detach", str(device)], check=True)


def test_a_block_device(loop_device: tuple[Path, Path]) -> None:
    device, backing = loop_device
    with served(open_file(device), 512) as disk:
        disk.contents[:] = b"d" * SIZE
        disk.write(3, b"w" * 5120, bits=FUA)
        disk.write(100, b"v" * 4608, offset=0x204)
        disk.zero(5, 2, 0)
        assert disk.queue.run(sqe(FLUSH)).code == 0
        before = backing.stat().st_blocks
        disk.discard(1024, 4096)
        assert disk.queue.run(sqe(FLUSH)).code == 0
        assert disk.read(0, 1024) == disk.expected(0, 1024)
        if disk.backend.discard_zeroes:
            assert disk.read(1000, 2000) == disk.expected(1000, 2000)
        assert backing.stat().st_blocks < before


def test_a_device_that_only_discards(loop_device: tuple[Path, Path]) -> None:
    """The ring's own discard gives the space back, or, before Linux 6.12, is left undone."""
    device, backing = loop_device
    fd = os.open(device, os.O_RDWR)
    backend = FileBackend(fd, SIZE, memory_align=1, length_align=1, read_only=False, discards=True)
    assert not backend.discard_zeroes
    with served(backend, 512) as disk:
        before = backing.stat().st_blocks
        disk.discard(1024, 4096)
        disk.contents[:] = b"d" * SIZE
        assert disk.read(0, 1024) == disk.expected(0, 1024)
        assert disk.read(5120, 1024) == disk.expected(5120, 1024)
        assert disk.queue.run(sqe(FLUSH)).code == 0
        release = tuple(int(part) for part in os.uname().release.split(".")[:2])
        assert (backing.stat().st_blocks < before) == (release >= (6, 12))
        disk.zero(0, SIZE // 512, 0)
        assert disk.read(0, 2048) == bytes(MIB)


def test_a_device_that_is_gone_for_writing(loop_device: tuple[Path, Path]) -> None:
    """What the kernel refuses is an error of that command."""
    device, _ = loop_device
    fd = os.open(device, os.O_RDONLY)
    backend = FileBackend(fd, SIZE, memory_align=1, length_align=1, read_only=False)
    with served(backend, 512) as disk:
        assert disk.move(WRITE, 0, 8) == Status.NAMESPACE_NOT_READY
        assert disk.read(0, 8) == b"d" * 4096
