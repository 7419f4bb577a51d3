"""The client's codecs, with literal bytes."""

import contextlib
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowbell.driver import wire
from shadowbell.driver.wire import Command, Flags, RegionFlags, WireError


def test_header() -> None:
    message = wire.encode(Command.REGION_WRITE, 0x1234, b"abcd", Flags.NO_REPLY)
    assert message == bytes.fromhex("3412 0a00 14000000 10000000 00000000") + b"abcd"
    assert wire.decode_header(message[:16]) == (0x1234, 10, 4, 0x10, 0)


@pytest.mark.parametrize("size", [0, 15, 1 << 30])
def test_bad_sizes_are_refused(size: int) -> None:
    with pytest.raises(WireError):
        wire.decode_header(struct.pack("<HHIII", 0, 0, size, 1, 0))


def test_version_names_the_capabilities() -> None:
    payload = wire.version(0, 1, 16)
    assert payload[:4] == bytes.fromhex("0000 0100")
    assert payload[-1] == 0
    assert json.loads(payload[4:-1])["capabilities"]["max_msg_fds"] == 16


def test_version_replies() -> None:
    assert wire.decode_version(b"\0\0\1\0") == (0, 1, {})
    assert wire.decode_version(b'\0\0\0\0{"capabilities":{"pgsizes":4096}}\0') == (
        *(0, 0),
        {"pgsizes": 4096},
    )
    for bad in (b"", b"\0\0\0", b"\0\0\0\0[]\0", b"\0\0\0\0{\0", b'\0\0\0\0{"capabilities":1}\0'):
        with pytest.raises(WireError):
            wire.decode_version(bad)


def region(flags: int, cap: int, size: int, tail: bytes = b"") -> bytes:
    return struct.pack("<IIIIQQ", 32 + len(tail), flags, 0, cap, size, 0x4000) + tail


def sparse(*areas: tuple[int, int], following: int = 0) -> bytes:
    head = struct.pack("<HHIII", 1, 1, following, len(areas), 0)
    return head + b"".join(struct.pack("<QQ", *area) for area in areas)


def test_region_without_mapping() -> None:
    found = wire.decode_region(region(3, 0, 0x4000))
    assert found.flags == RegionFlags.READ | RegionFlags.WRITE
    assert found.areas == ()


def test_region_with_sparse_areas() -> None:
    found = wire.decode_region(region(15, 32, 0x4000, sparse((0x1000, 0x1000))))
    assert (found.size, found.offset, found.areas) == (0x4000, 0x4000, ((0x1000, 0x1000),))


def test_region_mappable_as_a_whole() -> None:
    assert wire.decode_region(region(7, 0, 0x4000)).areas == ((0, 0x4000),)


@pytest.mark.parametrize(
    "payload",
    [
        b"short",
        region(15, 32, 0x4000),
        region(15, 5000, 0x4000),
        region(15, 32, 0x4000, sparse((0x1000, 0x1000))[:-1]),
        region(15, 32, 0x4000, sparse((0x3000, 0x2000))),
        region(15, 32, 0x4000, sparse((0, 0x1000), following=32)),
    ],
    ids=["short", "missing", "outside", "cut", "beyond", "loop"],
)
def test_hostile_region_info_is_refused(payload: bytes) -> None:
    with pytest.raises(WireError):
        wire.decode_region(payload)


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_read(payload: bytes) -> None:
    for decode in (wire.decode_region, wire.decode_version, lambda raw: wire.decode_io_fds(raw, 1)):
        with contextlib.suppress(WireError):
            decode(payload)


def io_fds(*entries: tuple[int, int, int, int], stride: int = 40) -> bytes:
    packed = [struct.pack("<QQIII", *entry, 0).ljust(stride, b"\0") for entry in entries]
    return struct.pack("<IIII", 16 + stride * len(entries), 0, 0, len(entries)) + b"".join(packed)


@pytest.mark.parametrize("stride", [40, 48], ids=["specification", "libvfio-user"])
def test_io_fds(stride: int) -> None:
    payload = io_fds((0x1008, 4, 0, 0), (0x1010, 4, 1, 2), stride=stride)
    found = wire.decode_io_fds(payload, 2)
    assert [(entry.offset, entry.size, entry.fd_index) for entry in found] == [(0x1008, 4, 0)]


@pytest.mark.parametrize("stride", [24, 41, 64])
def test_io_fds_of_another_layout_are_refused(stride: int) -> None:
    with pytest.raises(WireError):
        wire.decode_io_fds(io_fds((0x1008, 4, 0, 0), stride=stride), 1)


def test_io_fds_without_their_descriptor_are_refused() -> None:
    with pytest.raises(WireError):
        wire.decode_io_fds(io_fds((0x1008, 4, 1, 0)), 1)


def test_io_fds_that_only_tell_the_size() -> None:
    assert wire.decode_io_fds(struct.pack("<IIII", 64, 0, 0, 1), 0) == []
