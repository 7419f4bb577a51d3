"""The rules of the protocol one by one, and everything a hostile client may try."""

import errno
import json
import logging
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vfio_user_fakes import NO_REPLY, Client, irq_set, is_open

from shadowbell.vfio_user import ProtocolError

RAM = struct.pack("<IIQQQ", 32, 3, 0, 0, 1 << 20)


def read(offset: int, region: int, count: int) -> bytes:
    return struct.pack("<QII", offset, region, count)


def test_version_comes_first_and_once() -> None:
    client = Client(version=False)
    assert client.refusal(13) == errno.EINVAL
    assert client.device.resets == 0
    assert client.call(1, b"\0\0\0\0") == b"\0\0\0\0"
    assert client.refusal(1, b"\0\0\0\0") == errno.EINVAL


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0\0\0",
        struct.pack("<HH", 1, 0),
        b"\0\0\0\0{",
        b"\0\0\0\0[]\0",
        b"\0\0\0\0" + b"[" * 50_000,
        b'\0\0\0\0{"capabilities":[]}\0',
        b'\0\0\0\0{"capabilities":{"max_msg_fds":"1"}}\0',
        b'\0\0\0\0{"capabilities":{"max_msg_fds":-1}}\0',
        b'\0\0\0\0{"capabilities":{"pgsizes":true}}\0',
        b'\0\0\0\0{"capabilities":{"max_msg_fds":' + b"9" * 5000 + b"}}\0",
        b"\0\0\0\0\xff\xfe\0",
        b"\0\0\0\0" + b" " * 70_000,
    ],
)
def test_versions_that_are_refused(body: bytes) -> None:
    client = Client(version=False)
    assert client.refusal(1, body) == errno.EINVAL
    assert client.call(1, b"\0\0\0\0") == b"\0\0\0\0", "it may try again"


def test_unknown_capabilities_are_fine_and_declined() -> None:
    proposed = {"twin_socket": {"supported": True}, "write_multiple": True, "max_dma_maps": 99999}
    text = json.dumps({"capabilities": proposed}).encode() + b"\0"
    reply = Client(version=False).call(1, struct.pack("<HH", 0, 7) + text)
    assert reply == b'\0\0\1\0{"capabilities":{"max_dma_maps":65535}}\0'


def test_no_reply_is_never_answered() -> None:
    client = Client()
    for command in range(25):
        assert client.send(command, flags=NO_REPLY) is None
    write = struct.pack("<QII", 0x1008, 0, 4) + b"\5\0\0\0"
    assert client.send(10, write, flags=NO_REPLY) is None
    assert client.device.memory[0][0x1008:0x100C] == b"\5\0\0\0"


def test_replies_are_ignored() -> None:
    assert Client().send(11, bytes(16), flags=1) is None


@pytest.mark.parametrize("command", [0, 11, 12, 14, 16, 17, 18, 99])
def test_commands_that_are_not_ours(command: int) -> None:
    assert Client().refusal(command, bytes(64)) == errno.EOPNOTSUPP


def test_message_type_must_be_command_or_reply() -> None:
    reply = Client().send(13, flags=2)
    assert reply is not None
    assert struct.unpack("<HHIII", reply[0])[3:] == (0x21, errno.EINVAL)


@pytest.mark.parametrize("message", [b"", b"\0" * 15, struct.pack("<HHIII", 0, 13, 17, 0, 0)])
def test_broken_framing(message: bytes) -> None:
    fd = os.eventfd(0)
    with pytest.raises(ProtocolError):
        Client().session.handle(message, [fd])
    assert not is_open(fd)


@pytest.mark.parametrize(
    ("argsz", "flags", "offset", "address", "size"),
    [
        (31, 3, 0, 0, 4096),
        (32, 0, 0, 0, 4096),
        (32, 16 | 3, 0, 0, 4096),
        (32, 3, 0, 0, 0),
        (32, 3, 0, 1, 4096),
        (32, 3, 0, 0, 4097),
        (32, 3, 7, 0, 4096),
        (32, 3, 0, 1 << 63, 1 << 63 | 4096),
        (32, 3, 1 << 63, 0, 4096),
        (32, 3, 2**63 - 4096, 0, 4096),
    ],
)
def test_maps_that_are_refused(
    argsz: int, flags: int, offset: int, address: int, size: int
) -> None:
    client = Client()
    body = struct.pack("<IIQQQ", argsz, flags, offset, address, size)
    assert client.refusal(2, body) == errno.EINVAL
    assert client.engine.maps == {}


def test_maps_overlap_unmaps_match() -> None:
    client = Client()
    client.call(2, RAM)
    assert client.refusal(2, RAM) == errno.EEXIST
    two = [os.eventfd(0), os.eventfd(0)]
    assert client.refusal(2, struct.pack("<IIQQQ", 32, 3, 0, 1 << 20, 4096), fds=two)
    assert not any(is_open(fd) for fd in two)
    assert client.refusal(3, struct.pack("<IIQQ", 24, 0, 0, 4096)) == errno.ENOENT
    assert client.refusal(3, struct.pack("<IIQQ", 24, 1, 0, 1 << 20)) == errno.EOPNOTSUPP
    assert client.refusal(3, struct.pack("<IIQQ", 24, 4, 0, 1 << 20)) == errno.EINVAL
    assert client.refusal(3, struct.pack("<IIQQ", 23, 0, 0, 1 << 20)) == errno.EINVAL
    client.call(2, struct.pack("<IIQQQ", 32, 3, 0, 1 << 20, 4096))
    client.call(3, struct.pack("<IIQQ", 24, 0, 0, 1 << 21))
    assert client.engine.maps == {}, "one unmap may take several maps"
    client.call(2, RAM)
    everything = struct.pack("<IIQQ", 24, 2, 0, 0)
    assert client.call(3, everything + b"tail") == everything
    assert client.engine.maps == {}


def test_memory_that_is_not_shared_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    client = Client()
    client.call(2, struct.pack("<IIQQQ", 32, 1, 0, 0xFFFC0000, 0x40000))
    assert not caplog.records, "a ROM has no descriptor"
    client.call(2, RAM)
    client.call(2, struct.pack("<IIQQQ", 32, 3, 0, 1 << 20, 1 << 20))
    (record,) = caplog.records
    assert "memory-backend-memfd" in record.getMessage()
    assert "share=on" in record.getMessage()


@pytest.mark.parametrize(("private", "lines"), [(True, 1), (False, 0), (None, 0)])
def test_private_mappings_are_told(
    private: bool | None, lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(is_private=lambda fd: private)
    client.call(2, RAM, fds=[os.memfd_create("ram")])
    client.call(2, struct.pack("<IIQQQ", 32, 3, 0, 0xFD000000, 1 << 24))
    assert len(caplog.records) == lines, "video memory without a descriptor says nothing"


@pytest.mark.parametrize(
    ("command", "body"),
    [
        (4, struct.pack("<IIII", 15, 0, 0, 0)),
        (4, bytes(15)),
        (5, struct.pack("<IIIIQQ", 31, 0, 0, 0, 0, 0)),
        (5, struct.pack("<IIIIQQ", 32, 0, 9, 0, 0, 0)),
        (5, bytes(31)),
        (6, struct.pack("<IIII", 15, 0, 0, 0)),
        (6, struct.pack("<IIII", 16, 1, 0, 0)),
        (6, struct.pack("<IIII", 16, 0, 9, 0)),
        (6, struct.pack("<IIII", 16, 0, 0, 1)),
        (7, struct.pack("<IIII", 16, 0, 5, 0)),
        (7, struct.pack("<IIII", 12, 0, 0, 0)),
        (9, read(0, 0, 0x4001)),
        (9, read(0x4000, 0, 1)),
        (9, read(2**64 - 1, 0, 1)),
        (9, read(0, 1, 1)),
        (9, read(0, 9, 0)[:15]),
        (9, read(0, 2**32 - 1, 1)),
        (9, read(0, 7, (1 << 20) + 1)),
        (10, read(0, 0, 5) + b"1234"),
        (10, read(0x3FFD, 0, 4) + b"1234"),
        (15, struct.pack("<Q", 1) + bytes(23)),
        (15, struct.pack("<Q", 2**64 - 1) + bytes(24)),
        (15, struct.pack("<QQII", 1, 0, 0, 9) + bytes(8)),
        (15, bytes(7)),
    ],
)
def test_bodies_that_are_refused(command: int, body: bytes) -> None:
    assert Client().refusal(command, body) == errno.EINVAL


def test_reads_and_writes_of_nothing() -> None:
    client = Client()
    assert client.call(9, read(0, 0, 0)) == read(0, 0, 0)
    assert client.call(10, read(0x4000, 0, 0)) == read(0x4000, 0, 0)


def test_write_multi() -> None:
    client = Client()
    entry = struct.Struct("<QII8s")
    good = entry.pack(0x1000, 0, 4, b"\1\0\0\0") + entry.pack(0x14, 0, 8, b"12345678")
    assert client.call(15, struct.pack("<Q", 2) + good) == struct.pack("<Q", 2)
    assert client.device.memory[0][0x14:0x1C] == b"12345678"
    bad = good + entry.pack(0x4000, 0, 4, b"") + good
    assert client.call(15, struct.pack("<Q", 5) + bad) == struct.pack("<Q", 2), "up to the bad one"
    assert client.call(15, bytes(8)) == bytes(8)


def test_io_fds() -> None:
    client = Client()
    assert client.call(6, struct.pack("<IIII", 16, 0, 0, 0)) == struct.pack("<IIII", 16, 0, 0, 0)
    client.engine.io_fds = [(0x1008, 4, 20), (0x1010, 4, 21), (0x1018, 4, 20)]
    body, fds = client.call_for_fds(6, struct.pack("<IIII", 16, 0, 0, 0))
    assert (body, fds) == (struct.pack("<IIII", 136, 0, 0, 3), ())
    body, fds = client.call_for_fds(6, struct.pack("<IIII", 4096, 0, 0, 0))
    assert fds == (20, 21)
    assert body[:16] == struct.pack("<IIII", 136, 0, 0, 3)
    sub_regions = list(struct.iter_unpack("<QQIIIIQ", body[16:]))
    assert [(entry[0], entry[1], entry[2]) for entry in sub_regions] == [
        (0x1008, 4, 0),
        (0x1010, 4, 1),
        (0x1018, 4, 0),
    ]
    assert client.call(6, struct.pack("<IIII", 4096, 0, 7, 0)) == struct.pack("<IIII", 16, 0, 7, 0)


def test_io_fds_are_no_more_than_the_client_takes() -> None:
    client = Client(version=False)
    client.call(1, b"\0\0\0\0")
    client.engine.io_fds = [(0x1008, 4, 20), (0x1010, 4, 21), (0x1018, 4, 20)]
    body, fds = client.call_for_fds(6, struct.pack("<IIII", 4096, 0, 0, 0))
    assert fds == (20,)
    assert struct.unpack_from("<IIII", body)[3] == 2


@pytest.mark.parametrize(
    ("body", "descriptors"),
    [
        (irq_set(4 | 32, 2, 0, 2), 1),
        (irq_set(4 | 32, 2, 0, 1), 2),
        (irq_set(4 | 32, 2, 33, 1), 1),
        (irq_set(4 | 32, 2, 2**32 - 1, 2**32 - 1), 0),
        (irq_set(4 | 32, 5, 0, 1), 1),
        (irq_set(4 | 32, 0, 0, 1), 1),
        (irq_set(4 | 32, 2, 0, 0), 0),
        (irq_set(1 | 32, 2, 1, 0), 0),
        (irq_set(1 | 8, 2, 0, 0), 0),
        (irq_set(4 | 8, 2, 0, 1), 1),
        (irq_set(1 | 2 | 32, 2, 0, 1), 0),
        (irq_set(1 | 8 | 16, 2, 0, 1), 0),
        (irq_set(32, 2, 0, 1), 0),
        (irq_set(1, 2, 0, 1), 0),
        (irq_set(1 | 32 | 64, 2, 0, 1), 0),
        (irq_set(1 | 32, 2, 0, 1), 1),
        (irq_set(2 | 32, 2, 0, 3, b"\1\1"), 0),
        (irq_set(1 | 8, 3, 0, 1), 0),
        (irq_set(1 | 32, 2, 0, 1)[:19], 0),
        (struct.pack("<IIIII", 19, 1 | 32, 2, 0, 1), 0),
    ],
)
def test_interrupt_settings_that_are_refused(body: bytes, descriptors: int) -> None:
    client = Client()
    fds = [os.eventfd(0) for _ in range(descriptors)]
    assert client.refusal(8, body, fds=list(fds)) == errno.EINVAL
    assert client.engine.vectors == {}
    assert not any(is_open(fd) for fd in fds)


def test_only_eventfds_are_interrupts() -> None:
    client = Client()
    read_end, write_end = os.pipe()
    assert client.refusal(8, irq_set(4 | 32, 2, 0, 1), fds=[write_end]) == errno.EINVAL
    assert client.engine.vectors == {}
    os.close(read_end)


def test_masking() -> None:
    client = Client()
    mine = os.eventfd(0, os.EFD_NONBLOCK)
    client.call(8, irq_set(4 | 32, 2, 4, 1), fds=[os.dup(mine)])
    client.call(8, irq_set(1 | 8, 2, 4, 1))
    assert client.engine.vectors == {}
    client.call(8, irq_set(1 | 16, 2, 0, 33))
    assert list(client.engine.vectors) == [4]
    client.call(8, irq_set(2 | 8, 2, 3, 2, b"\0\1"))
    second = os.eventfd(0, os.EFD_NONBLOCK)
    client.call(8, irq_set(4 | 32, 2, 4, 1), fds=[os.dup(second)])
    assert client.engine.vectors == {}, "a new descriptor of a masked vector stays quiet"
    client.call(8, irq_set(2 | 16, 2, 4, 1, b"\1"))
    client.engine.signal_vector(4)
    assert os.eventfd_read(second) == 1
    client.call(8, irq_set(1 | 8, 2, 0, 33))
    client.call(8, irq_set(1 | 32, 2, 0, 0))
    client.call(8, irq_set(4 | 32, 2, 4, 1), fds=[os.dup(second)])
    assert list(client.engine.vectors) == [4], "disabling forgets masks"
    client.session.close()
    os.close(mine)
    os.close(second)


def test_a_client_may_trigger() -> None:
    client = Client()
    client.call(8, irq_set(1 | 32, 2, 1, 2))
    client.call(8, irq_set(2 | 32, 2, 1, 3, b"\0\1\1"))
    assert client.engine.signalled == [1, 2, 2, 3]
    error = os.eventfd(0, os.EFD_NONBLOCK)
    client.call(8, irq_set(1 | 32, 3, 0, 1))
    client.call(8, irq_set(4 | 32, 3, 0, 1), fds=[os.dup(error)])
    client.call(8, irq_set(1 | 32, 3, 0, 1))
    assert os.eventfd_read(error) == 1
    client.call(8, irq_set(1 | 32, 3, 0, 0))
    client.call(8, irq_set(1 | 32, 3, 0, 1))
    with pytest.raises(BlockingIOError):
        os.eventfd_read(error)
    os.close(error)


def test_absent_interrupts_can_be_disabled() -> None:
    client = Client()
    client.call(8, irq_set(4 | 32, 2, 0, 1), fds=[os.eventfd(0)])
    for index in (0, 1, 4):
        client.call(8, irq_set(1 | 32, index, 0, 0))
    assert list(client.engine.vectors) == [0]
    client.session.close()


bodies = st.one_of(
    st.binary(max_size=64),
    st.builds(
        lambda words, tail: struct.pack(f"<{len(words)}I", *words) + tail,
        st.lists(st.one_of(st.integers(0, 64), st.integers(0, 2**32 - 1)), max_size=10),
        st.binary(max_size=8),
    ),
)


@settings(deadline=None, max_examples=400)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 63), bodies), max_size=12))
def test_garbage_gets_exactly_one_sane_reply(messages: list[tuple[int, int, bytes]]) -> None:
    client = Client()
    for command, flags, body in messages:
        fds = [os.eventfd(0)]
        reply = client.send(command, body, fds=fds, flags=flags)
        if flags & NO_REPLY or flags & 15 == 1:
            assert reply is None
            continue
        assert reply is not None
        message, sent = reply
        _, echoed, size, reply_flags, number = struct.unpack("<HHIII", message[:16])
        assert (echoed, size) == (command, len(message))
        assert reply_flags in (1, 0x21)
        if reply_flags == 0x21:
            assert (size, sent) == (16, ())
            assert number > 0
    client.session.close()
    assert client.engine.vectors == {}
    os.close(client.engine.doorbell_fd)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=80))
def test_garbage_raises_nothing_but_protocol_errors(message: bytes) -> None:
    client = Client(version=False)
    try:
        client.session.handle(message, [])
    except ProtocolError:
        pass
    finally:
        os.close(client.engine.doorbell_fd)
