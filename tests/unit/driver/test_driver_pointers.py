"""PRPs and SGLs (Base 2.0, sections 4.1.1 and 4.1.2)."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from shadowbell.driver.memory import PAGE
from shadowbell.driver.pointers import (
    ENTRIES,
    descriptor,
    encode_prp_list,
    encode_sgl,
    list_pages,
    prp_pages,
)
from shadowbell.nvme.transfer import SglType


def test_prp_pages_of_an_aligned_transfer() -> None:
    assert prp_pages(0x10000, 4096) == [0x10000]
    assert prp_pages(0x10000, 4097) == [0x10000, 0x11000]


def test_prp_pages_with_an_offset() -> None:
    assert prp_pages(0x10E00, 1024) == [0x10E00, 0x11000]
    assert prp_pages(0x10E00, 512) == [0x10E00]


@given(st.integers(0, PAGE - 4), st.integers(1, 1 << 21))
def test_prp_pages_cover_the_transfer(offset: int, length: int) -> None:
    pages = prp_pages(0x100000 + offset, length)
    covered = PAGE - offset + (len(pages) - 1) * PAGE
    assert covered - PAGE < length <= covered
    assert all(page % PAGE == 0 for page in pages[1:])


def walk(memory: dict[int, int], at: int, count: int) -> list[int]:
    """Read a list as a controller does."""
    found: list[int] = []
    while len(found) < count:
        last = at % PAGE == PAGE - 8
        if last and count - len(found) > 1:
            at = memory[at]
            continue
        found.append(memory[at])
        at += 8
    return found


@given(st.integers(1, 3 * ENTRIES), st.integers(0, ENTRIES - 1))
def test_prp_list_reads_back(count: int, start: int) -> None:
    iova = 0x200000 + start * 8
    entries = [0x1000000 + number * PAGE for number in range(count)]
    encoded = encode_prp_list(entries, iova)
    memory = {
        iova + at: value[0]
        for at, value in zip(
            range(0, len(encoded), 8), struct.iter_unpack("<Q", encoded), strict=True
        )
    }
    assert walk(memory, iova, count) == entries


def test_list_pages() -> None:
    assert [list_pages(n) for n in (1, 512, 513, 1023, 1024)] == [1, 1, 2, 2, 3]
    for count in (1, 512, 513, 1022, 1023, 1024, 1534, 1535):
        encoded = encode_prp_list([0] * count, 0)
        assert -(-len(encoded) // PAGE) == list_pages(count)


def test_sgl_of_one_part_is_inline() -> None:
    assert encode_sgl([(0x1000, 512)], 0x9000) == struct.pack("<QIBBBB", 0x1000, 512, 0, 0, 0, 0)


def test_sgl_of_two_segments() -> None:
    parts = [(0x1000, 512), (0x2000, 512), (0x3000, 1024)]
    encoded = encode_sgl(parts, 0x9000, per_segment=2)
    assert encoded == b"".join(
        [
            descriptor(SglType.SEGMENT, 0x9000, 48),
            descriptor(SglType.DATA_BLOCK, 0x1000, 512),
            descriptor(SglType.DATA_BLOCK, 0x2000, 512),
            descriptor(SglType.LAST_SEGMENT, 0x9030, 16),
            descriptor(SglType.DATA_BLOCK, 0x3000, 1024),
        ]
    )
