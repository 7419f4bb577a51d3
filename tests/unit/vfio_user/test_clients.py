"""What real clients send, byte by byte, and the sizes they wait for."""

import os
import struct

from vfio_user_fakes import NO_REPLY, Client, irq_set, is_open

QEMU_VERSION = (
    b'{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "migration": {}, '
    b'"max_dma_maps": 65535, "max_data_xfer_size": 1048576, "write_multiple": true}}\0'
)
RUST_VERSION = (
    b'{"capabilities":{"max_msg_fds":1,"max_data_xfer_size":1048576,"migration":{"pgsize":4096}}}\0'
)


def dma_map(address: int, size: int, *, offset: int = 0, flags: int = 3) -> bytes:
    return struct.pack("<IIQQQ", 32, flags, offset, address, size)


def dma_unmap(address: int, size: int, flags: int = 0) -> bytes:
    return struct.pack("<IIQQ", 24, flags, address, size)


def access(offset: int, region: int, count: int) -> bytes:
    return struct.pack("<QII", offset, region, count)


def test_qemu_attaches() -> None:
    client = Client(version=False)
    request = struct.pack("<HH", 0, 0) + QEMU_VERSION
    reply = client.call(1, request)
    assert len(reply) <= len(request)
    assert reply == (
        b"\0\0\0\0"
        b'{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,'
        b'"pgsizes":4096,"max_dma_maps":65535}}\0'
    )

    memory = os.memfd_create("guest")
    copies = [os.dup(memory) for _ in range(3)]
    # All but the last of a run of maps are pipelined without asking for a reply.
    assert client.send(2, dma_map(0, 0xC3000), fds=copies[:1], flags=NO_REPLY) is None
    assert client.send(2, dma_map(0xFFFC0000, 0x40000, flags=1), flags=NO_REPLY) is None
    assert client.send(2, dma_map(0xC3000, 0x25000, flags=1), fds=copies[1:2]) is not None
    assert client.call(2, dma_map(1 << 20, 1 << 30, offset=1 << 20), fds=copies[2:]) == b""
    assert len(client.engine.maps) == 4
    assert not any(is_open(fd) for fd in copies)

    assert client.call(4, struct.pack("<IIII", 16, 0, 0, 0)) == struct.pack("<IIII", 16, 3, 9, 5)
    sizes = []
    for index in range(9):
        info = client.call(5, struct.pack("<IIIIQQ", 32, 0, index, 0, 0, 0))
        argsz, flags, echoed, cap_offset, size, offset = struct.unpack("<IIIIQQ", info)
        assert (argsz, echoed, cap_offset, offset) == (32, index, 0, 0)
        assert flags == (3 if size else 0)
        sizes.append(size)
    assert sizes == [0x4000, 0, 0, 0, 0, 0, 0, 4096, 0]

    counts = []
    for index in range(5):
        info = client.call(7, struct.pack("<IIII", 16, 0, index, 0))
        argsz, flags, echoed, count = struct.unpack("<IIII", info)
        assert (argsz, echoed, flags) == (16, index, 1 if count else 0)
        counts.append(count)
    assert counts == [0, 0, 33, 1, 0]

    config = client.call(9, access(0, 7, 4096))
    assert (config[:16], len(config)) == (access(0, 7, 4096), 16 + 4096)
    error = os.eventfd(0)
    assert client.call(8, irq_set(4 | 32, 3, 0, 1), fds=[error]) == b""
    # Machine reset: command register, DEVICE_RESET, BARs, memory taken away and given back.
    assert client.call(10, access(4, 7, 2) + b"\0\0") == access(4, 7, 2)
    assert client.call(13) == b""
    assert client.device.resets == 1
    assert client.call(10, access(0x10, 7, 4) + bytes(4)) == access(0x10, 7, 4)
    assert client.send(3, dma_unmap(0, 0xC3000), flags=NO_REPLY) is None
    assert client.call(3, dma_unmap(1 << 20, 1 << 30)) == dma_unmap(1 << 20, 1 << 30)
    assert is_open(error), "a reset keeps the error interrupt"
    client.session.close()
    assert not is_open(error)
    os.close(memory)


def test_qemu_enables_msix() -> None:
    client = Client()
    assert client.call(8, irq_set(4 | 32, 2, 0, 1)) == b"", "enabled, no vector has a descriptor"
    mine = [os.eventfd(0) for _ in range(3)]
    for vector, fd in enumerate(mine):
        assert client.call(8, irq_set(4 | 32, 2, vector, 1), fds=[os.dup(fd)]) == b""
    assert sorted(client.engine.vectors) == [0, 1, 2]
    replacement = os.eventfd(0)
    client.call(8, irq_set(4 | 32, 2, 1, 1), fds=[os.dup(replacement)])
    client.engine.signal_vector(1)
    assert os.eventfd_read(replacement) == 1
    client.call(8, irq_set(4 | 32, 2, 0, 2))
    assert sorted(client.engine.vectors) == [2], "a run of -1 takes its vectors away"
    client.call(8, irq_set(1 | 32, 2, 0, 0))
    assert client.engine.vectors == {}
    for fd in (*mine, replacement):
        os.close(fd)


def test_qemu_asks_twice_for_a_mappable_bar() -> None:
    client = Client(mapped=True)
    short, fds = client.call_for_fds(5, struct.pack("<IIIIQQ", 32, 0, 0, 0, 0, 0))
    assert (short, fds) == (struct.pack("<IIIIQQ", 64, 3, 0, 0, 0x4000, 0), ())
    full, fds = client.call_for_fds(5, struct.pack("<IIIIQQ", 64, 0, 0, 0, 0, 0))
    assert fds == (client.engine.doorbell_fd,)
    assert full[:32] == struct.pack("<IIIIQQ", 64, 3 | 4 | 8, 0, 32, 0x4000, 0)
    assert full[32:] == struct.pack("<HHIIIQQ", 1, 1, 0, 1, 0, 0x1000, 0x1000)
    for index in range(1, 9):
        info, fds = client.call_for_fds(5, struct.pack("<IIIIQQ", 64, 0, index, 0, 0, 0))
        assert (len(info), fds) == (32, ())


def test_spdk_attaches() -> None:
    client = Client(version=False, mapped=True)
    assert client.call(1, struct.pack("<HH", 0, 1)) == struct.pack("<HH", 0, 1)
    client.call(4, struct.pack("<IIII", 16, 0, 0, 0))
    for index in range(9):
        request = struct.pack("<IIIIQQ", 4064, 0, index, 0, 0, 0).ljust(4064, b"\0")
        info, fds = client.call_for_fds(5, request)
        assert (len(info), len(fds)) == ((64, 1) if index == 0 else (32, 0))
    memory = os.memfd_create("hugepage")
    address = 0x200000200000
    assert client.call(2, dma_map(address, 1 << 21), fds=[os.dup(memory)]) == b""
    # It sends the descriptor again when it unmaps.
    again = os.dup(memory)
    assert client.call(3, dma_unmap(address, 1 << 21), fds=[again]) == dma_unmap(address, 1 << 21)
    assert not is_open(again)
    assert client.call(10, access(0x14, 0, 4) + b"\1\0\x46\0") == access(0x14, 0, 4)
    assert client.call(9, access(0x14, 0, 4)) == access(0x14, 0, 4) + b"\1\0\x46\0"
    os.close(memory)


def test_rust_client() -> None:
    client = Client(version=False)
    reply = client.call(1, struct.pack("<HH", 0, 1) + RUST_VERSION)
    assert reply == (b'\0\0\1\0{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576}}\0')
    # Its argsz counts the header too.
    assert len(client.call(4, struct.pack("<IIII", 32, 0, 0, 0))) == 16
    mine = [os.eventfd(0) for _ in range(33)]
    for start in (0, 16, 32):
        chunk = [os.dup(fd) for fd in mine[start : start + 16]]
        assert client.call(8, irq_set(4 | 32, 2, start, len(chunk)), fds=chunk) == b""
    assert len(client.engine.vectors) == 33
    client.session.close()
    for fd in mine:
        os.close(fd)


def test_small_figures_get_small_figures_back() -> None:
    client = Client(version=False)
    request = struct.pack("<HH", 0, 1) + b'{"capabilities":{"max_msg_fds":8}}\0'
    assert client.call(1, request) == request
