"""Disks behind NBD servers and images that QEMU reads, through a served controller."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nbd_server import NbdServer, need

from serving import Attach, Serve
from shadowbell.block.images import find_program
from shadowbell.driver import Host, LoadSpec, Verifier, run_load
from shadowbell.driver.load import Load, LoadStats
from shadowbell.guest import Served

MIB = 1 << 20
SIZE = 32 * MIB
FORMATS = ("qcow2", "vmdk", "vhdx", "vdi", "vpc")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., NbdServer]]:
    servers: list[NbdServer] = []

    def make(*arguments: str) -> NbdServer:
        servers.append(NbdServer(tmp_path, *arguments))
        return servers[-1]

    yield make
    for each in servers:
        each.kill()


def qemu_img(*arguments: str | Path) -> str:
    need("qemu-img", "qemu-nbd")
    program = find_program("qemu-img")
    assert program is not None
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def in_threads(loads: list[Load], between: Callable[[], None], seconds: float) -> list[LoadStats]:
    found: list[LoadStats] = []
    threads = [
        threading.Thread(target=lambda load=load: found.append(load.run(seconds=seconds)))
        for load in loads
    ]
    for thread in threads:
        thread.start()
    between()
    for thread in threads:
        thread.join()
    return found


def verified_loads(host: Host, count: int) -> list[Load]:
    """Each on a queue and on blocks of its own."""
    blocks = host.namespaces[1].blocks // count // 64 * 64
    verifier = Verifier(host.namespaces[1].blocks, host.lba_size(1))
    return [
        Load(
            host,
            [host.create_queue_pair(32, interrupts=True)],
            LoadSpec(
                pattern="randrw",
                block_size=4096 << 2 * (number % 2),
                depth=16,
                first=number * blocks,
                length=blocks,
                seed=number,
                sleep=True,
            ),
            verifier=verifier,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("mode", ["auto", "disable"])
def test_killed_and_started_again_under_load(
    server: Callable[..., NbdServer], serve: Serve, attach: Attach, tmp_path: Path, mode: str
) -> None:
    """Every command is done, on three IOThreads, and what was written is there."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    nbd = server("--filter=multi-conn", "file", str(path), f"multi-conn-mode={mode}")
    served = serve(nbd.uri, "--iothreads", "3")
    host = attach(served)

    def unrest() -> None:
        for _ in range(4):
            time.sleep(0.4)
            nbd.kill()
            time.sleep(0.1)
            nbd.start()

    for stats in in_threads(verified_loads(host, 3), unrest, 3.0):
        assert stats.clean, stats
        assert stats.ios > 100
    assert "is back" in served.log


@pytest.mark.parametrize("kind", FORMATS)
def test_an_image_of_each_format(serve: Serve, attach: Attach, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"disk.{kind if kind != 'vpc' else 'vhd'}"
    options = ["-o", "force_size=on"] if kind == "vpc" else []
    qemu_img("create", "-f", kind, *options, path, "32M")
    served = serve(str(path), "--iothreads", "2")
    host = attach(served)
    assert host.namespaces[1].blocks == SIZE // 512
    for stats in in_threads(verified_loads(host, 2), lambda: None, 1.0):
        assert stats.clean, stats
    queue = host.create_queue_pair(16)
    noise = random.Random(1)
    for _ in range(50):
        block, blocks = noise.randrange(SIZE // 512 - 256), noise.randrange(1, 256)
        queue.write(1, block, noise.randbytes(512 * blocks))
    queue.write_zeroes(1, 1000, 3000, deallocate=True)
    queue.flush(1)
    contents = b"".join(queue.read(1, block, 2048) for block in range(0, SIZE // 512, 2048))
    host.detach(shut_down=False)
    assert served.stop() == 0
    if kind in ("qcow2", "vdi", "vhdx"):
        assert json.loads(qemu_img("check", "--output=json", path)).get("corruptions", 0) == 0
    raw = tmp_path / "raw.img"
    qemu_img("convert", "-O", "raw", path, raw)
    assert raw.read_bytes() == contents
    served.start()


def test_luks(serve: Serve, attach: Attach, tmp_path: Path) -> None:
    path, key = tmp_path / "secret.img", tmp_path / "key"
    key.write_text("open sesame")
    # QEMU measures how fast the key can be derived, and gives up where others take the processor.
    for last in (False, False, False, True):
        try:
            qemu_img(
                "create", "-f", "luks", "--object", f"secret,id=key,file={key}",
                "-o", "key-secret=key,iter-time=100", path, "4M",
            )  # fmt: skip
            break
        except AssertionError:
            if last:
                raise
    host = attach(serve(f"luks:{path},key={key}"))
    queue = host.create_queue_pair(16)
    queue.write(1, 0, b"plain words!" * 128, fua=True)
    assert queue.read(1, 0, 3) == b"plain words!" * 128
    assert b"plain words!" not in path.read_bytes()


def child_of(served: Served) -> int:
    """The image server that a server has started."""
    tasks = Path(f"/proc/{served.pid}/task").iterdir()
    children = [pid for task in tasks for pid in (task / "children").read_text().split()]
    assert len(children) == 1
    return int(children[0])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_crashed_image_server_is_started_again(
    serve: Serve, attach: Attach, tmp_path: Path
) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", path, "32M")
    served = serve(str(path))
    host = attach(served)
    queue = host.create_queue_pair(32)
    noise = random.Random(2)
    written: dict[int, bytes] = {}
    for number in range(10):
        for _ in range(20):
            block = noise.randrange(SIZE // 4096) * 8
            written[block] = noise.randbytes(4096)
            queue.write(1, block, written[block])
        queue.flush(1)
        if number % 3 == 0:
            os.kill(child_of(served), signal.SIGKILL)
        for block, data in written.items():
            assert queue.read(1, block, 8) == data
    assert "starting it again" in served.log
    host.detach(shut_down=False)
    assert served.stop() == 0
    qemu_img("check", path)
    served.start()


def test_the_image_server_ends_with_ours(serve: Serve, tmp_path: Path) -> None:
    """However ours ends: the image is free again."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", path, "32M")
    served = serve(str(path))
    child = child_of(served)
    os.kill(served.pid, signal.SIGKILL)
    end = time.monotonic() + 10
    while is_alive(child):
        assert time.monotonic() < end
        time.sleep(0.01)
    served.stop()
    served.start()


def test_a_disk_on_the_web(serve: Serve, attach: Attach, tmp_path: Path) -> None:
    """Read-only, by ranges of HTTP."""
    need("nbdkit")
    import functools
    import http.server

    contents = random.Random(3).randbytes(MIB)

    class Ranges(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(contents)))
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()

        def do_GET(self) -> None:
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            part = contents[int(first) : int(last) + 1]
            self.send_response(206)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(contents)}")
            self.end_headers()
            self.wfile.write(part)

        def log_message(self, *words: object) -> None:
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Ranges))
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    try:
        served = serve(f"http://127.0.0.1:{web.server_port}/disk.img")
        host = attach(served)
        queue = host.create_queue_pair(16)
        assert b"".join(queue.read(1, n, 256) for n in range(0, 2048, 256)) == contents
        host.detach(shut_down=False)
        assert served.stop() == 0
        served.start()
    finally:
        web.shutdown()
        thread.join()
        web.server_close()


def test_load_over_nbd_alone(
    server: Callable[..., NbdServer], serve: Serve, attach: Attach
) -> None:
    """Large and small, on one polled queue at full depth."""
    host = attach(serve(server("memory", str(SIZE)).uri))
    queue = host.create_queue_pair(256)
    verifier = Verifier(host.namespaces[1].blocks, 512)
    for size, depth in ((512, 200), (131072, 32)):
        spec = LoadSpec(pattern="randrw", block_size=size, depth=depth)
        stats = run_load(host, [queue], spec, seconds=1, verifier=verifier)
        assert stats.clean, stats
