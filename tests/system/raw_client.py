"""A vfio-user client of literal structs on a real socket, with just enough NVMe to identify."""

import array
import contextlib
import mmap
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, REGION_INFO, IO_FDS, IRQ_INFO, SET_IRQS = range(1, 9)
REGION_READ, REGION_WRITE, DEVICE_RESET, WRITE_MULTI = 9, 10, 13, 15
NO_REPLY = 0x10
CAPABILITIES = (
    b'{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,'
    b'"pgsizes":4096,"max_dma_maps":65535}}\0'
)
CONFIG = 7
TIMEOUT = 10.0


class Refusal(Exception):
    """The server answered with this errno."""


class RawClient:
    """Connects and, unless told not to, negotiates the version."""

    def __init__(self, path: Path, *, version: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(str(path))
        self._id = 0
        self.fds: list[int] = []
        if version:
            self.call(VERSION, struct.pack("<HH", 0, 1) + CAPABILITIES)

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()
        while self.fds:
            os.close(self.fds.pop())

    def send(
        self, command: int, body: bytes = b"", *, fds: tuple[int, ...] = (), flags: int = 0
    ) -> None:
        self._id = self._id + 1 & 0xFFFF
        head = struct.pack("<HHIII", self._id, command, 16 + len(body), flags, 0)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        assert self.socket.sendmsg([head + body], rights) == 16 + len(body)

    def receive(self, command: int) -> bytes:
        """The body of the next reply, which is to `command`; its descriptors go to `fds`."""
        head = self._exactly(16)
        _, echoed, size, flags, number = struct.unpack("<HHIII", head)
        body = self._exactly(size - 16)
        assert (echoed, flags & 0xF) == (command, 1)
        if flags & 0x20:
            assert not body
            raise Refusal(number)
        return body

    def call(self, command: int, body: bytes = b"", *, fds: tuple[int, ...] = ()) -> bytes:
        self.send(command, body, fds=fds)
        return self.receive(command)

    def read(self, region: int, offset: int, count: int) -> bytes:
        head = struct.pack("<QII", offset, region, count)
        reply = self.call(REGION_READ, head)
        assert reply[:16] == head
        assert len(reply) == 16 + count
        return reply[16:]

    def write(self, region: int, offset: int, data: bytes, *, posted: bool = False) -> None:
        head = struct.pack("<QII", offset, region, len(data))
        self.send(REGION_WRITE, head + data, flags=NO_REPLY if posted else 0)
        if not posted:
            assert self.receive(REGION_WRITE) == head

    def dma_map(self, iova: int, size: int, fd: int | None, *, offset: int = 0) -> None:
        body = struct.pack("<IIQQQ", 32, 3, offset, iova, size)
        assert self.call(DMA_MAP, body, fds=() if fd is None else (fd,)) == b""

    def dma_unmap(self, iova: int, size: int) -> None:
        body = struct.pack("<IIQQ", 24, 0, iova, size)
        assert self.call(DMA_UNMAP, body) == body

    def set_vector(self, vector: int, fd: int | None, *, index: int = 2) -> None:
        body = struct.pack("<IIIII", 20, 4 | 32, index, vector, 1)
        assert self.call(SET_IRQS, body, fds=() if fd is None else (fd,)) == b""

    def at_end(self) -> bool:
        """Whether the server has closed the connection."""
        with contextlib.suppress(ConnectionResetError):
            return self.socket.recv(1) == b""
        return True

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece, fds, _, _ = socket.recv_fds(self.socket, count - len(data), 16)
            if not piece:
                raise EOFError("the server closed the connection")
            self.fds += fds
            data += piece
        return data


class Host:
    """A guest's worth of memory and an admin queue of 16 entries in it, at iova 1 MiB."""

    BASE = 1 << 20
    SIZE = 1 << 20
    ENTRIES = 16
    SQ, CQ, DATA = 0, 0x1000, 0x2000

    def __init__(self, client: RawClient) -> None:
        self.client = client
        self.fd = os.memfd_create("raw-host")
        os.truncate(self.fd, self.SIZE)
        self.memory = mmap.mmap(self.fd, self.SIZE)
        client.dma_map(self.BASE, self.SIZE, self.fd)
        self._tail = self._head = 0
        self._phase = 1

    def close(self) -> None:
        self.memory.close()
        os.close(self.fd)

    def enable(self) -> None:
        self.memory[: self.DATA] = bytes(self.DATA)
        self._tail = self._head = 0
        self._phase = 1
        client = self.client
        client.write(0, 0x24, struct.pack("<I", (self.ENTRIES - 1) << 16 | self.ENTRIES - 1))
        client.write(0, 0x28, struct.pack("<Q", self.BASE + self.SQ))
        client.write(0, 0x30, struct.pack("<Q", self.BASE + self.CQ))
        client.write(0, 0x14, struct.pack("<I", 0x00460001))
        deadline = time.monotonic() + TIMEOUT
        while not self.ready:
            assert time.monotonic() < deadline

    @property
    def ready(self) -> bool:
        return bool(self.client.read(0, 0x1C, 4)[0] & 1)

    def submit_identify(self) -> bytes:
        """Put an Identify Controller into the queue; returns the doorbell's new value."""
        entry = struct.pack("<BBHIQQQQI", 6, 0, self._tail, 0, 0, 0, self.BASE + self.DATA, 0, 1)
        self.memory[64 * self._tail : 64 * self._tail + 64] = entry.ljust(64, b"\0")
        self._tail = (self._tail + 1) % self.ENTRIES
        return struct.pack("<I", self._tail)

    def complete(self) -> bytes:
        """Wait for the next completion, which is a success; returns the page of data."""
        deadline = time.monotonic() + TIMEOUT
        at = self.CQ + 16 * self._head
        while self.memory[at + 14] & 1 != self._phase:
            assert time.monotonic() < deadline, "no completion"
            time.sleep(0.0005)
        assert struct.unpack_from("<H", self.memory, at + 14)[0] >> 1 == 0
        self._head = (self._head + 1) % self.ENTRIES
        self._phase ^= self._head == 0
        self.client.write(0, 0x1004, struct.pack("<I", self._head), posted=True)
        return self.memory[self.DATA : self.DATA + 4096]

    def identify(self) -> bytes:
        """The serial number, asked for with a posted doorbell write as QEMU sends it."""
        self.client.write(0, 0x1000, self.submit_identify(), posted=True)
        return self.complete()[4:24].rstrip()


@contextlib.contextmanager
def enabled_host(client: RawClient) -> Iterator[Host]:
    host = Host(client)
    try:
        host.enable()
        yield host
    finally:
        host.close()
