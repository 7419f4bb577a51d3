"""The NBD back end against nbdkit, through an engine and IOThreads."""

import contextlib
import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dataplane_host import (
    DEAC,
    DNR,
    DSM,
    FLUSH,
    FUA,
    MIB,
    PAGE,
    READ,
    WRITE,
    WRITE_ZEROES,
    Host,
    running,
    sqe,
    wait_until,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nbd_server import NbdServer, need
from test_block_io import SIZE, Disk, Steps, sequences, served, take_steps

from shadowbell.block import Backend, open_backend
from shadowbell.errors import UserError
from shadowbell.nvme.status import Status

Start = Callable[..., NbdServer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    servers: list[NbdServer] = []

    def make(*arguments: str, tcp: bool = False) -> NbdServer:
        servers.append(NbdServer(tmp_path, *arguments, tcp=tcp))
        return servers[-1]

    yield make
    for server in servers:
        server.kill()


def opened(uri: str, lba: int = 512, read_only: bool = False, timeout: float = 0) -> Backend:
    return open_backend("nbd", path=uri, size=None, lba=lba, read_only=read_only, timeout=timeout)


def requests_in(folder: Path) -> list[str]:
    """What nbdkit's log filter says that it was asked to do, without what is 0."""
    lines = (folder / "requests").read_text().splitlines()
    found = (re.search(r"((?:Write|Flush|Zero|Trim)\b.*) \.\.\.$", line) for line in lines)
    return [re.sub(r" id=\d+| (fua|fast)=0\b", "", match[1]) for match in found if match]


@contextlib.contextmanager
def image(folder: Path) -> Iterator[Path]:
    path = folder / "disk.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    yield path


SERVERS = {
    "structured": ["tcp"],
    "simple": [],
    "small parts": [
        "--filter=blocksize-policy", "blocksize-maximum=32K", "blocksize-preferred=4K",
        "blocksize-minimum=1", "blocksize-error-policy=error",
    ],
    "no zeroes": ["--filter=nozero", "zeromode=none"],
    "one connection": ["--filter=multi-conn", "multi-conn-mode=disable"],
    "no fua": ["--filter=fua"],
}  # fmt: skip


@pytest.mark.parametrize("options", SERVERS.values(), ids=SERVERS.keys())
@pytest.mark.parametrize("lba", [512, 4096])
def test_any_sequence(start: Start, options: list[str], lba: int) -> None:
    filters = [option for option in options if option.startswith("-")]
    parameters = [option for option in options if "=" in option and option not in filters]
    server = start(*filters, "memory", f"{SIZE}", *parameters, tcp="tcp" in options)
    with served(opened(server.uri, lba), lba) as disk:

        @settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(steps=sequences, seed=st.integers(0, 1 << 30))
        def sequence(steps: Steps, seed: int) -> None:
            take_steps(disk, steps, seed)

        sequence()


def test_more_commands_than_bounce_buffers(start: Start) -> None:
    """63 at a time, each in two pieces of memory."""
    server = start("memory", f"{SIZE}")
    with served(opened(server.uri), 512) as disk:
        host, queue = disk.host, disk.queue
        area = host.take(64 * 4 * PAGE)
        for opcode in (WRITE, READ):
            for i in range(63):
                for page in (0, 2):
                    at = area + (4 * i + page) * PAGE
                    host.write(at, (bytes([i + 1]) if opcode == WRITE else b"?") * PAGE)
            queue.submit(
                *(
                    sqe(opcode, cid=i, lba=16 * i, blocks=16, prp1=area + 4 * i * PAGE,
                        prp2=area + (4 * i + 2) * PAGE)
                    for i in range(63)
                )
            )  # fmt: skip
            assert {c.status for c in queue.drain(63)} == {0}
        for i in range(63):
            for page in (0, 2):
                assert host.read(area + (4 * i + page) * PAGE, PAGE) == bytes([i + 1]) * PAGE


def test_what_the_server_is_asked(start: Start, tmp_path: Path) -> None:
    server = start("--filter=log", "memory", f"{SIZE}", f"logfile={tmp_path}/requests")
    with served(opened(server.uri), 512) as disk:
        disk.write(0, b"w" * 512)
        disk.write(8, b"f" * 512, bits=FUA)
        assert disk.queue.run(sqe(FLUSH)).code == 0
        disk.zero(16, 8, 0)
        disk.zero(24, 8, DEAC)
        disk.zero(32, 8, FUA)
        disk.discard(64, 8)
        disk.host.engine.flush_all()
    requests = requests_in(tmp_path)
    assert requests == [
        "Write offset=0x0 count=0x200",
        "Write offset=0x1000 count=0x200 fua=1",
        "Flush",
        "Zero offset=0x2000 count=0x1000 trim=0",
        "Zero offset=0x3000 count=0x1000 trim=1",
        "Zero offset=0x4000 count=0x1000 trim=0 fua=1",
        "Trim offset=0x8000 count=0x1000",
        "Flush",
    ]


def test_a_server_without_fua_is_asked_to_flush(start: Start, tmp_path: Path) -> None:
    server = start(
        "--filter=log", "--filter=fua", "memory", f"{SIZE}",
        f"logfile={tmp_path}/requests",
    )  # fmt: skip
    with served(opened(server.uri), 512) as disk:
        disk.write(0, b"w" * 512, bits=FUA)
        assert [line.split()[0] for line in requests_in(tmp_path)] == ["Write", "Flush"]


def test_a_read_only_export(start: Start) -> None:
    server = start("-r", "pattern", f"{SIZE}")
    with pytest.raises(UserError, match="read-only"):
        opened(server.uri)
    with served(opened(server.uri, read_only=True), 512) as disk:
        disk.contents[:] = b"".join(i.to_bytes(8, "big") for i in range(0, SIZE, 8))
        assert disk.read(100, 64) == disk.expected(100, 64)
        for opcode in (WRITE, WRITE_ZEROES):
            assert disk.move(opcode, 0, 1) == Status.NAMESPACE_IS_WRITE_PROTECTED
        disk.host.engine.flush_all()


@pytest.mark.parametrize(
    ("operation", "error", "opcode", "status"),
    [
        ("pread", "EIO", READ, Status.UNRECOVERED_READ_ERROR),
        ("pwrite", "EIO", WRITE, Status.WRITE_FAULT),
        ("pwrite", "ENOSPC", WRITE, Status.CAPACITY_EXCEEDED),
        ("pwrite", "EPERM", WRITE, Status.NAMESPACE_IS_WRITE_PROTECTED),
    ],
)
def test_the_servers_errors(
    start: Start, operation: str, error: str, opcode: int, status: int
) -> None:
    server = start(
        "--filter=error", "memory", f"{SIZE}", f"error-{operation}={error}",
        f"error-{operation}-rate=100%",
    )  # fmt: skip
    with served(opened(server.uri), 512) as disk:
        for blocks in (1, 64):
            assert disk.move(opcode, 0, blocks) == status
        assert disk.move(WRITE if opcode == READ else READ, 0, 1) == 0


def test_a_server_that_takes_only_large_blocks(start: Start) -> None:
    server = start(
        "--filter=blocksize-policy", "memory", f"{SIZE}", "blocksize-minimum=4096",
        "blocksize-preferred=4096", "blocksize-maximum=64K", "blocksize-error-policy=error",
    )  # fmt: skip
    with pytest.raises(UserError, match="lba=4096"):
        opened(server.uri, 512)
    with served(opened(server.uri, 4096), 4096) as disk:
        disk.write(3, b"x" * 65536, offset=0x204)
        assert disk.read(3, 16) == b"x" * 65536


def test_nobody_there(tmp_path: Path) -> None:
    need("nbdkit")
    for uri in (f"nbd+unix:///?socket={tmp_path}/none", "nbd://localhost:1/", "nbd://[::1/"):
        with pytest.raises(UserError, match="can't connect"):
            opened(uri)


# --- connections


@pytest.mark.parametrize("mode", ["auto", "disable"])
def test_several_iothreads(start: Start, tmp_path: Path, mode: str) -> None:
    """Each has its own connection where the server allows several; else they share the one."""
    server = start(
        "--filter=log", "--filter=multi-conn", "memory", f"{SIZE}",
        f"multi-conn-mode={mode}", f"logfile={tmp_path}/requests",
    )  # fmt: skip
    backend = opened(server.uri)
    with running(3) as threads:
        host = Host(threads)
        host.attach(backend)
        queues = [host.queue(qid) for qid in (1, 2, 3)]
        buffers = [host.take(64 * PAGE) for _ in queues]
        for lap in range(20):
            for opcode in (WRITE, READ):
                for queue, buffer in zip(queues, buffers, strict=True):
                    for i in range(32):
                        what = bytes([queue.qid, i, lap, opcode]) * 1024
                        host.write(buffer + i * 2 * PAGE, what)
                    queue.submit(
                        *(
                            sqe(opcode, cid=i, lba=1024 * queue.qid + 8 * i, blocks=8,
                                prp1=buffer + i * 2 * PAGE)
                            for i in range(32)
                        )
                    )  # fmt: skip
                for queue in queues:
                    assert {c.status for c in queue.drain(32)} == {0}
            for queue, buffer in zip(queues, buffers, strict=True):
                for i in range(32):
                    expected = bytes([queue.qid, i, lap, WRITE]) * 1024
                    assert host.read(buffer + i * 2 * PAGE, PAGE) == expected
        host.engine.flush_all()
        host.close()
        backend.close()
    log = (tmp_path / "requests").read_text()
    assert log.count(" Connect ") == (3 if mode == "auto" else 1)


def test_tls(start: Start, tmp_path: Path) -> None:
    keys, others = tmp_path / "keys.psk", tmp_path / "others.psk"
    keys.write_text(f"alice:{'5a' * 32}\n")
    others.write_text(f"alice:{'a5' * 32}\n")
    keys.chmod(0o600)
    server = start("--tls=require", f"--tls-psk={keys}", "memory", f"{SIZE}")
    uri = f"nbds+unix://alice@/?socket={server.socket}&tls-psk-file="
    with pytest.raises(UserError, match="can't connect"):
        opened(f"{uri}{others}")
    with pytest.raises(UserError, match="can't connect"):
        opened(server.uri)
    with served(opened(f"{uri}{keys}"), 512) as disk:
        for block, size in ((0, 512), (7, 65536), (100, MIB), (3000, 4096)):
            disk.write(block, bytes(range(256)) * (size // 256), offset=0x204)
        for block in range(0, SIZE // 512, 2048):
            assert disk.read(block, 2048) == disk.expected(block, 2048)
        server.kill()
        submit_reads(disk, 16)
        time.sleep(0.2)
        server.start()
        assert {c.status for c in disk.queue.drain(16)} == {0}
        disk.write(5, b"again" + bytes(507))
        assert disk.read(5, 1) == b"again" + bytes(507)


# --- a server that goes away


def submit_reads(disk: Disk, count: int) -> None:
    disk.queue.submit(
        *(sqe(READ, cid=i, lba=8 * i, blocks=8, prp1=disk.buffer + i * PAGE) for i in range(count))
    )


def test_a_killed_server_is_a_pause(start: Start, tmp_path: Path) -> None:
    """Commands under way and later ones wait for the server, and none fails."""
    with image(tmp_path) as path:
        server = start("--filter=delay", "file", str(path), "rdelay=60")
        with served(opened(server.uri), 512) as disk:
            for i in range(16):
                disk.write(8 * i, bytes([i + 1]) * PAGE)
            for _ in range(3):
                submit_reads(disk, 16)  # the server has them, and sits on them
                time.sleep(0.1)
                server.kill()
                assert disk.queue.peek() is None
                disk.queue.submit(sqe(WRITE, cid=99, lba=2000, blocks=8, prp1=disk.buffer + MIB))
                time.sleep(0.1)
                server.start("file", str(path))
                done = disk.queue.drain(17)
                assert {c.status for c in done} == {0}
                assert sorted(c.cid for c in done) == [*range(16), 99]
                for i in range(16):
                    assert disk.host.read(disk.buffer + i * PAGE, PAGE) == bytes([i + 1]) * PAGE
                server.kill()
                server.start()


def test_a_server_that_says_it_shuts_down(start: Start, tmp_path: Path) -> None:
    with image(tmp_path) as path:
        server = start("file", str(path))
        with served(opened(server.uri), 512) as disk:
            disk.write(0, b"1" * PAGE)
            server.signal(signal.SIGTERM)
            submit_reads(disk, 16)
            server.kill()
            server.start()
            assert {c.status for c in disk.queue.drain(16)} == {0}
            assert disk.read(0, 8) == disk.expected(0, 8)


@pytest.mark.parametrize("how", ["killed", "silent"])
def test_timeout(start: Start, tmp_path: Path, how: str) -> None:
    """A command that nobody answers in time fails, in a way that lets the host try again."""
    with image(tmp_path) as path:
        server = start("file", str(path))
        with served(opened(server.uri, timeout=0.3), 512) as disk:
            disk.write(0, b"1" * PAGE)
            if how == "killed":
                server.kill()
            else:
                server.freeze()
            began = time.monotonic()
            submit_reads(disk, 16)
            assert {c.status for c in disk.queue.drain(16)} == {Status.NAMESPACE_NOT_READY}
            assert time.monotonic() - began >= 0.3
            server.kill()
            server.start()
            wait_until(lambda: disk.move(READ, 0, 8) == 0, 20)
            assert disk.read(0, 8) == disk.expected(0, 8)


def test_the_control_plane_doesnt_wait_for_a_lost_server(start: Start, tmp_path: Path) -> None:
    """Memory is mapped and the disk goes, however long the server stays away."""
    with image(tmp_path) as path:
        server = start("file", str(path))
        with served(opened(server.uri), 512) as disk:
            disk.write(0, b"1" * PAGE)
            server.kill()
            submit_reads(disk, 4)
            time.sleep(0.05)
            disk.host.engine.dma_map(1 << 40, PAGE, disk.host.fd, 0, 3)
            done = disk.queue.drain(4)
            assert {c.status for c in done} == {Status.NAMESPACE_NOT_READY}
            assert not done[0].status & DNR
            server.start()
            assert disk.read(0, 8) == disk.expected(0, 8)
            server.kill()
            with pytest.raises(OSError, match=r".+"):
                disk.host.engine.flush_all()


def cpu_seconds(threads: set[threading.Thread]) -> float:
    """Processor time that threads of this process have used."""
    lines = (Path(f"/proc/self/task/{each.native_id}/schedstat").read_text() for each in threads)
    return sum(int(line.split()[0]) for line in lines) / 1e9


def test_waiting_for_a_stuck_command_costs_nothing(start: Start, tmp_path: Path) -> None:
    """Moves that are called off, and a pause, of a queue whose server says nothing."""
    with image(tmp_path) as path, running(2, poll_max_us=0) as iothreads:
        others = {each for each in threading.enumerate() if each.name.startswith("iothread-")}
        server = start("file", str(path))
        host = Host(iothreads)
        backend = opened(server.uri)
        disk = Disk(host, backend, 512)
        disk.write(0, b"1" * PAGE)
        server.freeze()
        submit_reads(disk, 4)
        time.sleep(0.05)
        (place,) = (index for _, index, _ in host.engine.queue_loads())
        before = cpu_seconds(others)
        for _ in range(3):
            assert not host.engine.move_queue(1, 1 - place, patience_ms=300)
        assert cpu_seconds(others) - before < 0.1
        thaw = threading.Timer(1.0, server.signal, [signal.SIGCONT])
        thaw.start()
        before, began = cpu_seconds(others), time.monotonic()
        host.engine.dma_map(1 << 40, PAGE, host.fd, 0, 3)
        assert time.monotonic() - began > 0.9
        assert cpu_seconds(others) - before < 0.1
        thaw.join()
        assert {c.status for c in disk.queue.drain(4)} == {0}
        assert disk.read(0, 8) == disk.expected(0, 8)
        host.close()
        backend.close()


def test_a_disk_that_comes_back_larger(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with image(tmp_path) as path, caplog.at_level(logging.INFO, "shadowbell"):
        server = start("file", str(path))
        backend = opened(server.uri)
        with served(backend, 512) as disk:
            disk.write(0, b"1" * PAGE)
            server.kill()
            wait_until(lambda: "is gone" in caplog.text)
            with path.open("ab") as file:
                file.truncate(2 * SIZE)
            server.start()
            assert disk.read(0, 8) == disk.expected(0, 8)
            assert backend.measure() == 2 * SIZE
    said = caplog.text
    assert "is gone, trying again" in said
    assert f"now has {2 * SIZE} bytes" in said
    assert "is back" in said


def test_discards_of_many_ranges(start: Start, tmp_path: Path) -> None:
    server = start("--filter=log", "memory", f"{SIZE}", f"logfile={tmp_path}/requests")
    with served(opened(server.uri), 512) as disk:
        disk.write(0, b"x" * MIB)
        ranges = b"".join(
            bytes(4) + (1).to_bytes(4, "little") + (2 * i).to_bytes(8, "little") for i in range(256)
        )
        disk.host.write(disk.buffer, ranges)
        assert disk.queue.run(sqe(DSM, prp1=disk.buffer, cdw10=255, cdw11=4)).code == 0
        for i in range(256):
            disk.contents[1024 * i : 1024 * i + 512] = bytes(512)
        assert disk.read(0, 2048) == disk.expected(0, 2048)
