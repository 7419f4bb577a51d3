"""Every back end against a bytearray, through an engine and an IOThread."""

import contextlib
import itertools
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from dataplane_host import (
    COMPARE,
    DEAC,
    DSM,
    FLUSH,
    FUA,
    MIB,
    PAGE,
    READ,
    VERIFY,
    WRITE,
    WRITE_ZEROES,
    Host,
    Queue,
    running,
    sqe,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shadowbell.block import Backend, open_backend
from shadowbell.dataplane import Pins
from shadowbell.nvme.status import Status

SIZE = 4 * MIB
SHM = Path("/dev/shm")


class Disk:
    """A back end served to a host with one queue, beside what should be on it."""

    def __init__(self, host: Host, backend: Backend, lba: int) -> None:
        self.host, self.backend, self.lba = host, backend, lba
        host.attach(backend, lba=lba)
        self.queue: Queue = host.queue(1)
        self.buffer = host.take(MIB + 2 * PAGE)
        self.lists = host.used
        self.contents = bytearray(min(backend.size, SIZE))

    def move(self, opcode: int, block: int, blocks: int, offset: int = 0, bits: int = 0) -> int:
        self.host.used = self.lists
        prps = self.host.prps(self.buffer + offset, blocks * self.lba)
        command = sqe(opcode, lba=block, blocks=blocks, prp1=prps[0], prp2=prps[1], cdw12=bits)
        return self.queue.run(command).code

    def write(self, block: int, data: bytes, offset: int = 0, bits: int = 0) -> None:
        self.host.write(self.buffer + offset, data)
        assert self.move(WRITE, block, len(data) // self.lba, offset, bits) == 0
        self.contents[block * self.lba : block * self.lba + len(data)] = data

    def read(self, block: int, blocks: int, offset: int = 0) -> bytes:
        self.host.write(self.buffer + offset, b"\xa5" * (blocks * self.lba))
        assert self.move(READ, block, blocks, offset) == 0
        return self.host.read(self.buffer + offset, blocks * self.lba)

    def zero(self, block: int, blocks: int, bits: int) -> None:
        assert self.queue.run(sqe(WRITE_ZEROES, lba=block, blocks=blocks, cdw12=bits)).code == 0
        self.contents[block * self.lba : (block + blocks) * self.lba] = bytes(blocks * self.lba)

    def discard(self, block: int, blocks: int) -> None:
        self.host.write(self.buffer, struct.pack("<IIQ", 0, blocks, block))
        assert self.queue.run(sqe(DSM, prp1=self.buffer, cdw10=0, cdw11=4)).code == 0
        self.contents[block * self.lba : (block + blocks) * self.lba] = bytes(blocks * self.lba)

    def compare(self, block: int, data: bytes, offset: int = 0) -> bool:
        self.host.write(self.buffer + offset, data)
        code = self.move(COMPARE, block, len(data) // self.lba, offset)
        assert code in (0, Status.COMPARE_FAILURE)
        return code == 0

    def expected(self, block: int, blocks: int) -> bytes:
        return bytes(self.contents[block * self.lba : (block + blocks) * self.lba])


@contextlib.contextmanager
def served(
    backend: Backend,
    lba: int,
    *,
    sqpoll: bool = False,
    iopoll: bool = False,
    fixed: bool = False,
) -> Iterator[Disk]:
    """``fixed``: the host's memory is registered, or still on its way there."""
    with running(sqpoll=sqpoll, iopoll=iopoll) as threads, contextlib.ExitStack() as stack:
        pins = Pins(threads) if fixed else None
        if pins is not None:
            stack.callback(pins.close)
        host = Host(threads, pins=pins)
        try:
            yield Disk(host, backend, lba)
        finally:
            host.close()
            backend.close()


counter = itertools.count()


@pytest.fixture(params=["memory", "file", "tmpfs"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str | None]]:
    if request.param == "memory":
        yield "memory", None
        return
    path = tmp_path / "disk.img"
    if request.param == "tmpfs":
        if not os.access(SHM, os.W_OK):
            pytest.skip("no tmpfs")
        path = SHM / f"shadowbell-test-{os.getpid()}-{next(counter)}.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    yield "file", str(path)
    path.unlink()


@pytest.fixture(params=[512, 4096])
def disk(request: pytest.FixtureRequest, where: tuple[str, str | None]) -> Iterator[Disk]:
    kind, path = where
    backend = open_backend(kind, path=path, size=SIZE, lba=request.param, read_only=False)
    with served(backend, request.param) as made:
        yield made


offsets = st.one_of(st.just(0), st.integers(0, 1023).map(lambda n: 4 * n))


Steps = list[tuple[str, int, int, int, int]]
sequences = st.lists(
    st.tuples(
        st.sampled_from(["write", "read", "zero", "discard", "compare", "verify", "flush"]),
        st.integers(0, SIZE - 1),
        st.one_of(st.integers(1, 8), st.integers(1, 256)),
        offsets,
        st.sampled_from([0, FUA, DEAC, FUA | DEAC]),
    ),
    min_size=5,
    max_size=25,
)


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=sequences, seed=st.integers(0, 1 << 30))
def test_any_sequence(disk: Disk, steps: Steps, seed: int) -> None:
    take_steps(disk, steps, seed)


def take_steps(disk: Disk, steps: Steps, seed: int) -> None:
    draw = random.Random(seed)
    for what, where, length, offset, bits in steps:
        total = SIZE // disk.lba
        block = where // disk.lba
        blocks = min(length, total - block, MIB // disk.lba)
        if what == "write":
            disk.write(block, draw.randbytes(blocks * disk.lba), offset, bits & FUA)
        elif what == "read":
            assert disk.read(block, blocks, offset) == disk.expected(block, blocks)
        elif what == "zero":
            disk.zero(block, blocks, bits)
        elif what == "discard":
            disk.discard(block, blocks)
        elif what == "compare":
            right = disk.expected(block, blocks)
            assert disk.compare(block, right, offset)
            wrong = bytearray(right)
            wrong[draw.randrange(len(wrong))] ^= 1
            assert not disk.compare(block, bytes(wrong), offset)
        elif what == "verify":
            assert disk.queue.run(sqe(VERIFY, lba=block, blocks=blocks)).code == 0
        else:
            assert disk.queue.run(sqe(FLUSH)).code == 0
    for block in range(0, SIZE // disk.lba, MIB // disk.lba):
        assert disk.read(block, MIB // disk.lba) == disk.expected(block, MIB // disk.lba)


def test_whole_disk_at_once(disk: Disk) -> None:
    disk.write(0, b"x" * MIB)
    for bits in (0, FUA, DEAC, DEAC | FUA):
        disk.write(3, b"y" * MIB)
        disk.zero(0, SIZE // disk.lba, bits)
        assert disk.read(0, MIB // disk.lba) == bytes(MIB)
    assert disk.queue.run(sqe(VERIFY, lba=0, blocks=SIZE // disk.lba)).code == 0


def test_more_unaligned_commands_than_bounce_buffers(disk: Disk) -> None:
    """63 at a time, at addresses that O_DIRECT refuses; compares need buffers as well."""
    host, queue = disk.host, disk.queue
    area = host.take(64 * 2 * PAGE)
    for opcode in (WRITE, READ, COMPARE):
        for i in range(63):
            at = area + i * 2 * PAGE + 4 * (i + 1)
            data = bytes([i + 1]) * PAGE
            if opcode != READ:
                host.write(at, data)
            else:
                host.write(at, bytes(PAGE))
        queue.submit(
            *(
                sqe(
                    opcode,
                    cid=i,
                    lba=i * PAGE // disk.lba,
                    blocks=PAGE // disk.lba,
                    prp1=area + i * 2 * PAGE + 4 * (i + 1),
                    prp2=area + i * 2 * PAGE + PAGE,
                )
                for i in range(63)
            )
        )
        done = queue.drain(63)
        assert sorted(c.cid for c in done) == list(range(63))
        assert {c.code for c in done} == {0}
        if opcode == READ:
            for i in range(63):
                at = area + i * 2 * PAGE + 4 * (i + 1)
                assert host.read(at, PAGE) == bytes([i + 1]) * PAGE


def test_writes_reach_the_file(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    backend = open_backend("file", path=str(path), size=None, lba=512, read_only=False)
    with served(backend, 512) as disk:
        disk.write(5, b"a" * 512, bits=FUA)
        disk.write(100, b"b" * 5120, offset=0x204)
        assert disk.queue.run(sqe(FLUSH)).code == 0
        disk.host.engine.flush_all()
        assert path.read_bytes() == disk.contents
        before = path.stat().st_blocks
        disk.discard(0, SIZE // 512)
        assert path.stat().st_blocks < before
        assert path.stat().st_size == SIZE


def test_an_image_that_is_cut_short(tmp_path: Path) -> None:
    """Reading where the file has ended fails that command; the disk behind is as it was."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"d" * SIZE)
    backend = open_backend("file", path=str(path), size=None, lba=512, read_only=False)
    with served(backend, 512) as disk:
        os.truncate(path, MIB)
        for block, blocks, offset in ((2048, 1, 0), (2040, 64, 0), (2040, 64, 0x204), (8191, 1, 4)):
            assert disk.move(READ, block, blocks, offset) == Status.UNRECOVERED_READ_ERROR
            assert disk.move(COMPARE, block, blocks, offset) == Status.UNRECOVERED_READ_ERROR
        assert disk.queue.run(sqe(VERIFY, lba=2000, blocks=100)).code == (
            Status.UNRECOVERED_READ_ERROR
        )
        assert disk.host.ledger(1).media_errors == 9
        assert disk.read(0, 8) == b"d" * 4096
        disk.write(8191, b"w" * 512)
        assert disk.read(2047, 1) == b"d" * 512


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """A failed write costs the command: here by a size limit that our process has."""
    import resource
    import signal

    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    backend = open_backend("file", path=str(path), size=None, lba=512, read_only=False)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with served(backend, 512) as disk:
            resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, old[1]))
            code = disk.move(WRITE, 4096, 1)
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
            assert code in (Status.WRITE_FAULT, Status.CAPACITY_EXCEEDED)
            assert disk.move(WRITE, 4096, 1) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, previous)


def test_a_read_only_image(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"r" * MIB)
    path.chmod(0o444)
    backend = open_backend("file", path=str(path), size=None, lba=4096, read_only=True)
    with served(backend, 4096) as disk:
        assert disk.read(7, 3, 0x104) == b"r" * 3 * 4096
        for opcode in (WRITE, WRITE_ZEROES):
            assert disk.move(opcode, 0, 1) == Status.NAMESPACE_IS_WRITE_PROTECTED
        assert disk.queue.run(sqe(FLUSH)).code == 0
        disk.host.engine.flush_all()


def test_null_moves_nothing() -> None:
    backend = open_backend("null", path=None, size=1 << 50, lba=512, read_only=False)
    with served(backend, 512) as disk:
        disk.host.write(disk.buffer, b"as it was" + bytes(503))
        last = (1 << 50) // 512 - 1
        for opcode in (WRITE, READ, WRITE_ZEROES):
            assert disk.move(opcode, last, 1) == 0
        assert disk.host.read(disk.buffer, 9) == b"as it was"
