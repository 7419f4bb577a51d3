"""Data pointers (NVMe Base 2.0, 4.1.1 PRPs and 4.1.2 SGLs) against a model in Python.

``Engine.write_data`` and ``read_data`` walk a command's pointer just as the I/O commands do.
"""

import random
import struct
from collections.abc import Iterator

import pytest
from dataplane_host import MIB, PAGE, READ, Host, sqe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shadowbell.dataplane import IOThread
from shadowbell.dataplane.notices import TransferError
from shadowbell.nvme.status import Status

BLOCK, SEGMENT, LAST = 0x00, 0x20, 0x30
SGL = 0x40
STRATEGY = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

# Pieces of the memfd at IO virtual addresses that neither follow one another nor keep its order.
PLACES = ((0, 0, 64), (64, 256, 1), (65, 258, 191), (1 << 20, 512, 300), (1 << 40, 1024, 1024))


@pytest.fixture
def scattered(iothreads: list[IOThread]) -> Iterator[Host]:
    host = Host(iothreads, map_all=False)
    for page, file_page, pages in PLACES:
        host.engine.dma_map(page * PAGE, pages * PAGE, host.fd, file_page * PAGE, 3)
    yield host
    host.close()


def place(iova: int) -> int:
    """Where in the memfd an IO virtual address lies; KeyError when nowhere."""
    for page, file_page, pages in PLACES:
        if page * PAGE <= iova < (page + pages) * PAGE:
            return iova - page * PAGE + file_page * PAGE
    raise KeyError(iova)


def poke(host: Host, iova: int, data: bytes) -> None:
    for i in range(0, len(data), 8):
        at = place(iova + i)
        host.memory[at : at + 8] = data[i : i + 8].ljust(8, b"\0")


def check_moves(host: Host, command: bytes, pieces: list[tuple[int, int]]) -> None:
    """Data goes to exactly these pieces (iova, length) in order, and comes back from them."""
    length = sum(n for _, n in pieces)
    data = random.Random(length).randbytes(length)
    before = bytes(host.memory)
    host.engine.write_data(command, data)
    expected = bytearray(before)
    at = 0
    for iova, count in pieces:
        while count:
            part = min(count, PAGE - iova % PAGE)
            start = place(iova)
            expected[start : start + part] = data[at : at + part]
            iova, count, at = iova + part, count - part, at + part
    assert bytes(host.memory) == bytes(expected)
    assert host.engine.read_data(command, length) == data


def check_fails(host: Host, command: bytes, length: int, status: int) -> None:
    for call in (
        lambda: host.engine.write_data(command, bytes(length)),
        lambda: host.engine.read_data(command, length),
    ):
        with pytest.raises(TransferError) as raised:
            call()
        assert raised.value.status == status


# The last 600 pages of the largest place hold data, what is before them lists.
DATA = (1 << 40) + 400
data_pages = st.integers(DATA, (1 << 40) + 1023)


@STRATEGY
@given(
    offset=st.integers(0, PAGE // 4 - 1).map(lambda n: 4 * n),
    length=st.integers(1, MIB),
    room=st.one_of(st.integers(1, 512), st.integers(1, 3)),
    seed=st.integers(0, 1 << 30),
)
def test_prps(scattered: Host, offset: int, length: int, room: int, seed: int) -> None:
    """Any first offset, any length, the list anywhere in its page, chained when it must be."""
    draw = random.Random(seed)
    first = DATA * PAGE + offset
    pieces = [(first, min(length, PAGE - offset))]
    left = length - pieces[0][1]
    pages = draw.sample(range(DATA + 1, (1 << 40) + 1024), -(-left // PAGE))
    for page in pages:
        pieces.append((page * PAGE, min(left, PAGE)))
        left -= PAGE
    if len(pages) < 2:
        prp2 = pages[0] * PAGE if pages else draw.getrandbits(64)
    else:
        prp2 = at = (1 << 40) * PAGE + PAGE - 8 * room
        entries = [page * PAGE for page in pages]
        list_page = (1 << 40) + 1
        while len(entries) > room:
            poke(scattered, at, struct.pack(f"<{room}Q", *entries[: room - 1], list_page * PAGE))
            entries = entries[room - 1 :]
            at, room, list_page = list_page * PAGE, 512, list_page + 1
        poke(scattered, at, struct.pack(f"<{len(entries)}Q", *entries))
    check_moves(scattered, sqe(READ, prp1=first, prp2=prp2), pieces)


@STRATEGY
@given(
    lengths=st.lists(st.one_of(st.just(0), st.integers(1, 9000)), min_size=1, max_size=100),
    cuts=st.lists(st.integers(1, 40), max_size=8),
    seed=st.integers(0, 1 << 30),
)
def test_sgls(scattered: Host, lengths: list[int], cuts: list[int], seed: int) -> None:
    """Data blocks of any length at any byte, in segments of any number of descriptors."""
    draw = random.Random(seed)
    lengths = [*lengths, 1]
    start = DATA * PAGE
    pieces = []
    for length in lengths:
        start += draw.randrange(64)
        pieces.append((start, length))
        start += length
    draw.shuffle(pieces)
    blocks = [struct.pack("<QI3xB", iova, length, BLOCK) for iova, length in pieces]
    segments = []
    for cut in cuts:
        if len(blocks) > cut:
            segments.append(blocks[:cut])
            blocks = blocks[cut:]
    segments.append(blocks)
    at = (1 << 40) * PAGE + 16 * draw.randrange(256)
    pointer = b""
    kind = LAST
    for segment in reversed(segments):
        raw = b"".join(segment) + pointer
        poke(scattered, at, raw)
        pointer = struct.pack("<QI3xB", at, len(raw), kind)
        at += len(raw) + 16 * draw.randrange(300)
        kind = SEGMENT
    prp1, prp2 = struct.unpack("<QQ", pointer)
    flags = draw.choice((SGL, 2 * SGL))
    command = sqe(READ, flags=flags, prp1=prp1, prp2=prp2)
    check_moves(scattered, command, pieces)


def sgl(address: int, length: int, kind: int) -> bytes:
    return sqe(READ, flags=SGL, prp1=address, prp2=length | kind << 56)


def test_a_single_data_block(scattered: Host) -> None:
    check_moves(scattered, sgl(65 * PAGE + 3, 5000, BLOCK), [(65 * PAGE + 3, 5000)])


def test_data_across_maps(scattered: Host) -> None:
    """Neighbours in IO virtual addresses that lie apart in the host's memory."""
    start = 63 * PAGE + 100
    check_moves(scattered, sgl(start, 3 * PAGE, BLOCK), [(start, 3 * PAGE)])
    check_moves(
        scattered, sqe(READ, prp1=start, prp2=64 * PAGE), [(start, PAGE - 100), (64 * PAGE, 200)]
    )


def test_data_that_ends_where_the_map_does(scattered: Host) -> None:
    end = 256 * PAGE
    for length in (1, 4, 512, PAGE):
        check_moves(scattered, sgl(end - length, length, BLOCK), [(end - length, length)])
        check_fails(scattered, sgl(end - length, length + 1, BLOCK), length + 1, 4)
    check_moves(scattered, sqe(READ, prp1=end - 4), [(end - 4, 4)])
    check_fails(scattered, sqe(READ, prp1=end - PAGE, prp2=end), PAGE + 4, 4)


@pytest.mark.parametrize("prp1", [1, 2, 3, 4095, 0x1002])
def test_first_prps_that_arent_dword_aligned(scattered: Host, prp1: int) -> None:
    check_fails(scattered, sqe(READ, prp1=prp1), 4, Status.PRP_OFFSET_INVALID)


@pytest.mark.parametrize("prp2", [4, 8, 512, PAGE + 1])
def test_second_prps_with_an_offset(scattered: Host, prp2: int) -> None:
    check_fails(scattered, sqe(READ, prp1=0, prp2=prp2), 2 * PAGE, Status.PRP_OFFSET_INVALID)


@pytest.mark.parametrize("prp2", [1, 4, 4092])
def test_lists_that_arent_qword_aligned(scattered: Host, prp2: int) -> None:
    check_fails(scattered, sqe(READ, prp1=0, prp2=prp2), 3 * PAGE, Status.PRP_OFFSET_INVALID)


def test_list_entries_with_an_offset(scattered: Host) -> None:
    poke(scattered, PAGE, struct.pack("<3Q", 2 * PAGE, 3 * PAGE + 8, 4 * PAGE))
    command = sqe(READ, prp1=0, prp2=PAGE)
    check_fails(scattered, command, 4 * PAGE, Status.PRP_OFFSET_INVALID)


def test_lists_that_point_to_themselves(scattered: Host) -> None:
    """From any entry: it ends after a few hops, whatever the length."""
    for back in (8, 16, 24, 4096):
        where = 2 * PAGE - back
        entries = [3 * PAGE] * (back // 8 - 1) + [where]
        poke(scattered, where, struct.pack(f"<{len(entries)}Q", *entries))
        command = sqe(READ, prp1=0, prp2=where)
        if back < 4096:
            check_fails(scattered, command, MIB, Status.PRP_OFFSET_INVALID)
        else:
            scattered.engine.read_data(command, MIB)  # 256 pages fit the list: no hop


@pytest.mark.parametrize("unmapped", [256, 1 << 30, (1 << 52) - 1, (1 << 20) + 300])
def test_addresses_that_arent_mapped(scattered: Host, unmapped: int) -> None:
    bad = unmapped * PAGE
    error = Status.DATA_TRANSFER_ERROR
    check_fails(scattered, sqe(READ, prp1=bad), 4, error)
    check_fails(scattered, sqe(READ, prp1=0, prp2=bad), 2 * PAGE, error)
    check_fails(scattered, sqe(READ, prp1=0, prp2=bad), 3 * PAGE, error)
    poke(scattered, PAGE, struct.pack("<2Q", 2 * PAGE, bad))
    check_fails(scattered, sqe(READ, prp1=0, prp2=PAGE), 3 * PAGE, error)
    check_fails(scattered, sgl(bad, 16, BLOCK), 16, error)
    check_fails(scattered, sgl(bad, 16, LAST), 16, error)
    check_fails(scattered, sgl(bad, 16, SEGMENT), 16, error)


def test_addresses_that_wrap(scattered: Host) -> None:
    top = (1 << 64) - PAGE
    check_fails(scattered, sgl(top, PAGE + 16, BLOCK), PAGE + 16, Status.DATA_TRANSFER_ERROR)
    scattered.engine.dma_map(top, PAGE, scattered.fd, 0, 3)
    check_fails(scattered, sgl((1 << 32) * PAGE - 8, 16, BLOCK), 16, Status.DATA_TRANSFER_ERROR)
    scattered.engine.write_data(sgl(top + 8, PAGE - 8, BLOCK), b"x" * (PAGE - 8))
    # Behind the last address comes 0, which is mapped here: only that the process lives counts.
    scattered.engine.read_data(sgl(top, PAGE + 16, BLOCK), PAGE + 16)


def test_access_rights(scattered: Host) -> None:
    engine = scattered.engine
    engine.dma_map(1 << 44, PAGE, scattered.fd, 0, 1)
    engine.dma_map(1 << 45, PAGE, scattered.fd, 0, 2)
    engine.dma_map(1 << 53, PAGE, None, 0, 3)
    assert engine.read_data(sqe(READ, prp1=1 << 44), 8) == bytes(8)
    engine.write_data(sqe(READ, prp1=1 << 45), b"written!")
    assert scattered.memory[:8] == b"written!"
    for call in (
        lambda: engine.write_data(sqe(READ, prp1=1 << 44), b"x"),
        lambda: engine.read_data(sqe(READ, prp1=1 << 45), 1),
        lambda: engine.read_data(sqe(READ, prp1=1 << 53), 1),
        lambda: engine.read_data(sqe(READ, prp1=0, prp2=1 << 45), 3 * PAGE),  # a list we can't read
    ):
        with pytest.raises(TransferError) as raised:
            call()
        assert raised.value.status == Status.DATA_TRANSFER_ERROR


@pytest.mark.parametrize(
    ("descriptors", "length", "status"),
    [
        ([(0, 511, BLOCK)], 512, Status.DATA_SGL_LENGTH_INVALID),
        ([(0, 513, BLOCK)], 512, Status.DATA_SGL_LENGTH_INVALID),
        ([(0, 512, BLOCK), (0, 1, BLOCK)], 512, Status.DATA_SGL_LENGTH_INVALID),
        ([(0, 0xFFFFFFFF, BLOCK)], 512, Status.DATA_SGL_LENGTH_INVALID),
        ([(0, 512, 0x10)], 512, Status.SGL_DESCRIPTOR_TYPE_INVALID),  # bit bucket
        ([(0, 512, 0x40)], 512, Status.SGL_DESCRIPTOR_TYPE_INVALID),  # keyed
        ([(0, 512, 0xF0)], 512, Status.SGL_DESCRIPTOR_TYPE_INVALID),
        ([(0, 512, 0x01)], 512, Status.SGL_DESCRIPTOR_TYPE_INVALID),  # an offset, not an address
        ([(0, 16, LAST)], 512, Status.INVALID_SGL_SEGMENT_DESCRIPTOR),
        ([(0, 16, SEGMENT), (0, 512, BLOCK)], 512, Status.INVALID_SGL_SEGMENT_DESCRIPTOR),
    ],
)
def test_last_segments_that_are_wrong(
    scattered: Host, descriptors: list[tuple[int, int, int]], length: int, status: int
) -> None:
    raw = b"".join(struct.pack("<QI3xB", *d) for d in descriptors)
    poke(scattered, PAGE, raw)
    check_fails(scattered, sgl(PAGE, len(raw), LAST), length, status)


@pytest.mark.parametrize("length", [0, 1, 15, 17, 0xFFFFFFFF])
@pytest.mark.parametrize("kind", [SEGMENT, LAST])
def test_segments_of_wrong_length(scattered: Host, length: int, kind: int) -> None:
    check_fails(scattered, sgl(PAGE, length, kind), 512, Status.INVALID_SGL_SEGMENT_DESCRIPTOR)


def test_a_segment_must_end_with_a_segment(scattered: Host) -> None:
    poke(scattered, PAGE, struct.pack("<QI3xB", 0, 512, BLOCK))
    check_fails(scattered, sgl(PAGE, 16, SEGMENT), 512, Status.INVALID_SGL_SEGMENT_DESCRIPTOR)


@pytest.mark.parametrize("flags", [SGL, 2 * SGL])
def test_chains_without_end(scattered: Host, flags: int) -> None:
    poke(scattered, PAGE, struct.pack("<QI3xB", PAGE, 16, SEGMENT))
    command = sqe(READ, flags=flags, prp1=PAGE, prp2=16 | SEGMENT << 56)
    check_fails(scattered, command, 512, Status.INVALID_NUMBER_OF_SGL_DESCRIPTORS)
    empty = struct.pack("<QI3xB", 0, 0, BLOCK)
    poke(scattered, PAGE, empty + struct.pack("<QI3xB", PAGE, 32, SEGMENT))
    check_fails(scattered, sgl(PAGE, 32, SEGMENT), 512, Status.INVALID_NUMBER_OF_SGL_DESCRIPTORS)


def test_more_pieces_than_we_hold(scattered: Host) -> None:
    for count, works in ((512, True), (513, False)):
        where = (1 << 40) * PAGE
        blocks = [struct.pack("<QI3xB", (DATA * PAGE) + 8 * i, 4, BLOCK) for i in range(count)]
        poke(scattered, where, b"".join(blocks))
        command = sgl(where, 16 * count, LAST)
        if works:
            scattered.engine.write_data(command, bytes(4 * count))
        else:
            check_fails(scattered, command, 4 * count, Status.INVALID_NUMBER_OF_SGL_DESCRIPTORS)


def test_the_reserved_psdt(scattered: Host) -> None:
    check_fails(scattered, sqe(READ, flags=0xC0), 512, Status.INVALID_FIELD_IN_COMMAND)


def test_what_cant_be_a_transfer(scattered: Host) -> None:
    check_fails(scattered, sqe(READ), MIB + 1, Status.INVALID_FIELD_IN_COMMAND)
    check_fails(scattered, sqe(READ)[:-1], 512, Status.INVALID_FIELD_IN_COMMAND)
    scattered.engine.write_data(sqe(READ, prp1=1 << 60), b"")
    assert scattered.engine.read_data(sqe(READ, prp1=1 << 60), 0) == b""
