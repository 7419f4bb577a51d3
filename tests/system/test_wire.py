"""A server over real sockets, talked to in raw vfio-user: what clients do, and shouldn't."""

import contextlib
import logging
import mmap
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from raw_client import (
    CONFIG,
    DEVICE_RESET,
    GET_INFO,
    IO_FDS,
    IRQ_INFO,
    NO_REPLY,
    REGION_INFO,
    REGION_READ,
    SET_IRQS,
    VERSION,
    WRITE_MULTI,
    RawClient,
    Refusal,
    enabled_host,
)

from shadowbell.config import ControllerConfig, NamespaceConfig, ServerConfig
from shadowbell.dataplane import live_objects
from shadowbell.errors import UserError
from shadowbell.manage import Server

MEMORY = NamespaceConfig(kind="memory", size=1 << 20)


@contextlib.contextmanager
def serving(*controllers: ControllerConfig, iothreads: int = 1) -> Iterator[Server]:
    server = Server(ServerConfig(controllers=controllers, iothreads=iothreads))
    thread = threading.Thread(target=server.run)
    try:
        server.start()
        thread.start()
        yield server
    finally:
        server.stop()
        if thread.ident is not None:
            thread.join()
        server.close()


def controller(path: Path, **options: object) -> ControllerConfig:
    return ControllerConfig(socket=str(path), namespaces=(MEMORY,), **options)  # type: ignore[arg-type]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk.sock"
    with serving(controller(path, serial="WIRE")):
        yield path


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_attach_as_qemu_does(disk: Path) -> None:
    with RawClient(disk) as client:
        assert client.call(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0))[4:] == struct.pack(
            "<III", 3, 9, 5
        )
        sizes = []
        for index in range(9):
            info = client.call(REGION_INFO, struct.pack("<IIIIQQ", 32, 0, index, 0, 0, 0))
            assert len(info) == 32
            sizes.append(struct.unpack("<IIIIQQ", info)[4])
        assert sizes == [0x4000, 0, 0, 0, 0, 0, 0, 4096, 0]
        counts = [
            struct.unpack("<IIII", client.call(IRQ_INFO, struct.pack("<IIII", 16, 0, i, 0)))[3]
            for i in range(5)
        ]
        assert counts == [0, 0, 65, 1, 0]
        assert client.fds == []
        assert client.read(CONFIG, 0, 4096)[9:12] == b"\x02\x08\x01"
        assert client.read(0, 8, 4) == struct.pack("<I", 0x00020000), "NVMe 2.0"
        capabilities = client.read(0, 0, 8)
        assert capabilities == client.read(0, 0, 4) + client.read(0, 4, 4)
        assert client.read(0, 0x1000, 0x3000)[:0x1000] == bytes(0x1000)
        with pytest.raises(Refusal):
            client.read(1, 0, 4)


def test_identify_with_every_kind_of_doorbell_write(disk: Path) -> None:
    with RawClient(disk) as client:
        interrupt = os.eventfd(0, os.EFD_NONBLOCK)
        client.set_vector(0, interrupt)
        with enabled_host(client) as host:
            for _ in range(40):
                assert host.identify() == b"WIRE"
            assert os.eventfd_read(interrupt) >= 1
            client.write(0, 0x1000, host.submit_identify())
            assert host.complete()[4:24].rstrip() == b"WIRE"
            write = struct.pack("<QII8s", 0x1000, 0, 4, host.submit_identify())
            assert client.call(WRITE_MULTI, struct.pack("<Q", 1) + write) == struct.pack("<Q", 1)
            assert host.complete()[4:24].rstrip() == b"WIRE"
        os.close(interrupt)


def test_masked_vectors_are_made_up_for(disk: Path) -> None:
    with RawClient(disk) as client:
        interrupt = os.eventfd(0, os.EFD_NONBLOCK)
        client.set_vector(0, interrupt)
        with enabled_host(client) as host:
            client.call(SET_IRQS, struct.pack("<IIIII", 20, 1 | 8, 2, 0, 1))
            client.write(0, 0x1000, host.submit_identify())
            eventually(lambda: bool(host.memory[host.CQ + 14] & 1))
            with pytest.raises(BlockingIOError):
                os.eventfd_read(interrupt)
            client.call(SET_IRQS, struct.pack("<IIIII", 20, 1 | 16, 2, 0, 1))
            assert os.eventfd_read(interrupt) == 1
        os.close(interrupt)


@pytest.mark.parametrize("way", ["message", "function level reset"])
def test_resets(disk: Path, way: str) -> None:
    with RawClient(disk) as client, enabled_host(client) as host:
        for _ in range(3):
            assert host.identify() == b"WIRE"
            if way == "message":
                assert client.call(DEVICE_RESET) == b""
            else:
                client.write(CONFIG, 0x68, b"\x10\xa8")
            assert not host.ready
            assert client.read(0, 0x14, 4) == bytes(4)
            host.enable()
            assert host.identify() == b"WIRE", "the memory is still mapped"


def test_queues_outlive_their_memory(disk: Path) -> None:
    with RawClient(disk) as client, enabled_host(client) as host:
        for _ in range(5):
            client.dma_unmap(host.BASE, host.SIZE)
            client.dma_map(host.BASE, host.SIZE, host.fd)
            assert host.identify() == b"WIRE"


def test_reconnect_finds_a_new_device(disk: Path) -> None:
    for _ in range(20):
        with RawClient(disk) as client:
            assert client.read(0, 0x14, 4) == bytes(4)
            assert client.read(CONFIG, 4, 2) == bytes(2)
            client.write(CONFIG, 4, b"\6\0")
            client.set_vector(3, None)
            with enabled_host(client) as host:
                assert host.identify() == b"WIRE"
                # And off, with commands under way.
                client.write(0, 0x1000, host.submit_identify(), posted=True)


def test_nothing_is_left_of_clients(disk: Path) -> None:
    def visit() -> None:
        with RawClient(disk) as client:
            for vector in range(65):
                fd = os.eventfd(0)
                client.set_vector(vector, fd)
                os.close(fd)
            with enabled_host(client) as host:
                client.send(REGION_READ, struct.pack("<QII", 0, CONFIG, 4096))
                # Descriptors that come with the wrong message, or with half of one.
                client.send(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0), fds=(host.fd,) * 3)
                socket.send_fds(client.socket, [b"\1\0\2\0\x30"], [host.fd])

    visit()
    eventually(lambda: live_objects().get("channels", 0) == 0)
    before, objects = descriptors(), live_objects()
    for _ in range(5):
        visit()
    eventually(lambda: descriptors() == before)
    assert live_objects() == objects


def test_a_second_client_is_turned_away(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with RawClient(disk) as client:
        with RawClient(disk, version=False) as second:
            assert second.at_end()
        assert client.read(0, 8, 4) == struct.pack("<I", 0x00020000)
    assert any("second client" in record.getMessage() for record in caplog.records)
    eventually(lambda: any("detached" in record.getMessage() for record in caplog.records))
    assert f"attached (process {os.getpid()})" in caplog.text


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        bytes(64),
        b"\xff" * 64,
        struct.pack("<HHIII", 1, VERSION, 15, 0, 0),
        struct.pack("<HHIII", 1, VERSION, 2**32 - 1, 0, 0),
    ],
)
def test_garbage_costs_the_connection_only(disk: Path, garbage: bytes) -> None:
    with RawClient(disk, version=False) as client:
        client.socket.sendall(garbage)
        assert client.at_end()
    with RawClient(disk) as client, enabled_host(client) as host:
        assert host.identify() == b"WIRE"


def test_random_garbage(tmp_path: Path) -> None:
    first, second = tmp_path / "first.sock", tmp_path / "second.sock"
    dice = random.Random(2)
    with (
        serving(controller(first, serial="FIRST"), controller(second, serial="SECOND")),
        RawClient(second) as good,
        enabled_host(good) as host,
    ):
        for _ in range(100):
            with (
                contextlib.suppress(BrokenPipeError, ConnectionResetError, Refusal, EOFError),
                RawClient(first, version=dice.random() < 0.8) as client,
            ):
                for _ in range(dice.randrange(1, 20)):
                    body = dice.randbytes(dice.randrange(100))
                    if dice.random() < 0.5:
                        words = [dice.choice((0, 1, 16, 32, 4096)) for _ in range(8)]
                        body = struct.pack("<8I", *words) + body
                    client.send(dice.randrange(20), body, flags=dice.choice((0, NO_REPLY)))
                client.socket.sendall(dice.randbytes(dice.randrange(50)))
            assert host.identify() == b"SECOND"
        with RawClient(first) as client, enabled_host(client) as again:
            assert again.identify() == b"FIRST"


def test_clients_may_pipeline(disk: Path) -> None:
    with RawClient(disk) as client:
        for register in range(200):
            client.write(CONFIG, 0x3C, bytes([register]), posted=True)
            client.send(REGION_READ, struct.pack("<QII", 0x3C, CONFIG, 1))
        for register in range(200):
            assert client.receive(REGION_READ)[16:] == bytes([register])


def test_a_client_that_does_not_read_holds_up_only_itself(tmp_path: Path) -> None:
    lazy_path, path = tmp_path / "lazy.sock", tmp_path / "disk.sock"
    with (
        serving(controller(lazy_path), controller(path, serial="BUSY")),
        RawClient(lazy_path) as lazy,
        RawClient(path) as client,
        enabled_host(client) as host,
    ):
        lazy.socket.setblocking(False)
        asked = 0
        with contextlib.suppress(BlockingIOError):
            while asked < 100_000:
                lazy.send(REGION_READ, struct.pack("<QII", 0, CONFIG, 4096))
                asked += 1
        for _ in range(20):
            assert host.identify() == b"BUSY"
        assert asked < 100_000, "the server has stopped reading"
        lazy.socket.settimeout(10)
        for _ in range(asked):
            assert len(lazy.receive(REGION_READ)) == 16 + 4096
        assert len(lazy.read(CONFIG, 0, 4096)) == 4096


def test_mapped_doorbells(tmp_path: Path) -> None:
    path = tmp_path / "disk.sock"
    with serving(controller(path, doorbells="mapped", serial="MAPPED")), RawClient(path) as client:
        info = client.call(REGION_INFO, struct.pack("<IIIIQQ", 64, 0, 0, 0, 0, 0))
        offset = struct.unpack("<IIIIQQ", info[:32])[5]
        *_, areas, _, area_offset, area_size = struct.unpack("<HHIIIQQ", info[32:])
        assert (areas, area_offset, area_size) == (1, 0x1000, 0x1000)
        (fd,) = client.fds
        with (
            mmap.mmap(fd, area_size, offset=offset + area_offset) as page,
            enabled_host(client) as host,
        ):
            page[0:4] = host.submit_identify()
            assert host.complete()[4:24].rstrip() == b"MAPPED"


def test_io_fds_without_any(disk: Path) -> None:
    with RawClient(disk) as client:
        reply = client.call(IO_FDS, struct.pack("<IIII", 4096, 0, 0, 0))
        assert reply == struct.pack("<IIII", 16, 0, 0, 0)


def test_msi(tmp_path: Path) -> None:
    path = tmp_path / "disk.sock"
    with serving(controller(path, interrupts="msi", serial="MSI")), RawClient(path) as client:
        assert client.call(IRQ_INFO, struct.pack("<IIII", 16, 0, 1, 0)) == struct.pack(
            "<IIII", 16, 1, 1, 32
        )
        interrupt = os.eventfd(0, os.EFD_NONBLOCK)
        client.set_vector(0, interrupt, index=1)
        with enabled_host(client) as host:
            assert host.identify() == b"MSI"
        assert os.eventfd_read(interrupt) >= 1
        os.close(interrupt)


def test_many_controllers_one_process(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}" / "cntrl" for i in range(8)]
    configs = [controller(path, serial=f"C{i}") for i, path in enumerate(paths)]
    with serving(*configs, iothreads=2), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(path)) for path in paths]
        hosts = [stack.enter_context(enabled_host(client)) for client in clients]
        for _ in range(5):
            for i, host in enumerate(hosts):
                assert host.identify() == b"C%d" % i
    assert not any(path.exists() for path in paths)


def test_sockets_in_use_and_bad_images_are_user_errors(tmp_path: Path, disk: Path) -> None:
    before = descriptors()
    for bad in (
        controller(disk),
        controller(tmp_path / "absent" / "disk.sock"),
        ControllerConfig(
            socket=str(tmp_path / "other.sock"),
            namespaces=(NamespaceConfig(kind="file", path=str(tmp_path / "absent.img")),),
        ),
    ):
        with (
            pytest.raises(UserError),
            serving(controller(tmp_path / "first.sock"), bad),
        ):
            pass
    assert not (tmp_path / "first.sock").exists()
    assert descriptors() <= before  # earlier clients may have gone meanwhile
    with RawClient(disk) as client:
        assert client.read(0, 8, 4) == struct.pack("<I", 0x00020000)


def test_stopping_with_a_client(tmp_path: Path) -> None:
    path = tmp_path / "disk.sock"
    before, objects = descriptors(), live_objects()
    with serving(controller(path)):
        client = RawClient(path)
        with enabled_host(client) as host:
            host.identify()
    with client:
        assert client.at_end()
    eventually(lambda: descriptors() == before)
    assert live_objects() == objects


@pytest.mark.parametrize("first", [1, 2, 63, 64])
def test_more_descriptors_than_anybody_needs(disk: Path, first: int) -> None:
    message = struct.pack("<HHIII", 1, VERSION, 20, 0, 0) + bytes(4)
    fd = os.eventfd(0)
    for _ in range(3):
        with RawClient(disk, version=False) as client, contextlib.suppress(OSError):
            socket.send_fds(client.socket, [message[:5]], [fd] * first)
            time.sleep(0.02)
            socket.send_fds(client.socket, [message[5:]], [fd] * 64)
            client.receive(VERSION)
            socket.send_fds(client.socket, [message], [fd] * 253)
            client.socket.recv(16)
    os.close(fd)
    with RawClient(disk) as client, enabled_host(client) as host:
        assert host.identify() == b"WIRE"


def test_a_whole_table_of_vectors_at_once(disk: Path) -> None:
    with RawClient(disk) as client:
        fds = tuple(os.eventfd(0) for _ in range(33))
        body = struct.pack("<IIIII", 20, 4 | 32, 2, 0, len(fds))
        assert client.call(SET_IRQS, body, fds=fds) == b""
        for fd in fds:
            os.close(fd)
