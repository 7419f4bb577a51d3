"""Stand-ins for the engine and the PCI function, and a client that speaks in literal structs."""

import logging
import os
import struct
from typing import Any

from shadowbell.vfio_user import Session

NO_REPLY = 0x10
ERROR = 0x20


class FakeEngine:
    """Remembers what it is told; maps may not overlap."""

    def __init__(self) -> None:
        self.doorbell_fd = os.memfd_create("doorbells")
        self.maps: dict[int, tuple[int, int | None, int, int]] = {}
        self.vectors: dict[int, int] = {}
        self.signalled: list[int] = []
        self.io_fds: list[tuple[int, int, int]] = []

    def region_io_fds(self) -> list[tuple[int, int, int]]:
        return self.io_fds

    def dma_map(self, iova: int, length: int, fd: int | None, offset: int, prot: int) -> None:
        for start, (size, *_) in self.maps.items():
            if iova < start + size and start < iova + length:
                raise ValueError("overlaps")
        self.maps[iova] = (length, fd, offset, prot)

    def dma_unmap(self, iova: int, length: int) -> None:
        inside = [a for a, (n, *_) in self.maps.items() if iova <= a and a + n <= iova + length]
        if not inside:
            raise ValueError("no such map")
        for start in inside:
            del self.maps[start]

    def dma_unmap_all(self) -> None:
        self.maps.clear()

    def set_vector(self, vector: int, fd: int | None) -> None:
        old = self.vectors.pop(vector, None)
        if old is not None:
            os.close(old)
        if fd is not None:
            self.vectors[vector] = fd

    def signal_vector(self, vector: int) -> None:
        self.signalled.append(vector)
        if vector in self.vectors:
            os.eventfd_write(self.vectors[vector], 1)


class FakeDevice:
    """A BAR0 and a configuration space that are plain memory; 33 MSI-X vectors."""

    def __init__(self) -> None:
        self.memory = {0: bytearray(0x4000), 7: bytearray(4096)}
        self.resets = 0

    def region_size(self, region: int) -> int:
        return len(self.memory.get(region, b""))

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        return bytes(self.memory[region][offset : offset + count])

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        self.memory[region][offset : offset + len(data)] = data

    def reset(self) -> None:
        self.resets += 1

    def irq_counts(self) -> tuple[int, ...]:
        return (0, 0, 33, 1, 0)


class Client:
    """Sends to a Session; `call` checks what every reply has to have."""

    def __init__(self, *, mapped: bool = False, version: bool = True, **options: Any) -> None:
        self.engine = FakeEngine()
        self.device = FakeDevice()
        log = logging.getLogger("shadowbell")
        self.session = Session(self.device, self.engine, mapped=mapped, log=log, **options)
        self._id = 0
        if version:
            self.call(1, struct.pack("<HH", 0, 0) + b'{"capabilities":{"max_msg_fds":16}}\0')

    def send(
        self, command: int, body: bytes = b"", *, fds: list[int] | None = None, flags: int = 0
    ) -> tuple[bytes, tuple[int, ...]] | None:
        self._id += 1
        head = struct.pack("<HHIII", self._id, command, 16 + len(body), flags, 0)
        return self.session.handle(head + body, fds or [])

    def call(self, command: int, body: bytes = b"", *, fds: list[int] | None = None) -> bytes:
        """The body of a successful reply."""
        return self.call_for_fds(command, body, fds=fds)[0]

    def call_for_fds(
        self, command: int, body: bytes = b"", *, fds: list[int] | None = None
    ) -> tuple[bytes, tuple[int, ...]]:
        reply = self.send(command, body, fds=fds)
        assert reply is not None
        message, sent = reply
        assert struct.unpack("<HHIII", message[:16]) == (self._id, command, len(message), 1, 0)
        return message[16:], sent

    def refusal(self, command: int, body: bytes = b"", *, fds: list[int] | None = None) -> int:
        """The errno of an error reply, which is the header alone."""
        reply = self.send(command, body, fds=fds)
        assert reply is not None
        message, sent = reply
        assert sent == ()
        message_id, echoed, size, flags, number = struct.unpack("<HHIII", message)
        assert (message_id, echoed, size, flags) == (self._id, command, 16, 1 | ERROR)
        assert number > 0
        return int(number)


def irq_set(flags: int, index: int, start: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IIIII", 20 + len(data), flags, index, start, count) + data


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
