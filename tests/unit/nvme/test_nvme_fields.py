"""The field descriptors: offsets, widths, padding and sharing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowbell.nvme.fields import (
    U16,
    U32,
    Ascii,
    Bits,
    Raw,
    Structure,
    StructureArray,
    UintArray,
    Utf8,
)


class Inner(Structure):
    SIZE = 4
    low = U16(0)


class Sample(Structure):
    SIZE = 64
    word = U32(0)
    middle = Bits(word, 15, 8)
    name = Ascii(4, 8)
    nqn = Utf8(12, 8)
    raw = Raw(20, 4)
    numbers = UintArray(24, 2, 4)
    inner = StructureArray(32, Inner, 2)


def test_a_new_structure_is_all_zero_and_false() -> None:
    sample = Sample()
    assert bytes(sample) == bytes(64)
    assert not sample
    assert repr(sample) == "Sample()"


def test_fields_are_little_endian_at_their_offsets() -> None:
    sample = Sample()
    sample.word = 0x04030201
    sample.name = "ab"
    sample.nqn = "nqn"
    sample.raw = b"\xff"
    sample.numbers[1] = 0x1234
    sample.inner[1].low = 7
    raw = bytes(sample)
    assert raw[:4] == b"\x01\x02\x03\x04"
    assert raw[4:12] == b"ab      "
    assert raw[12:20] == b"nqn\0\0\0\0\0"
    assert raw[20:24] == b"\xff\0\0\0"
    assert raw[24:32] == b"\0\0\x34\x12\0\0\0\0"
    assert raw[32:40] == b"\0\0\0\0\x07\0\0\0"
    assert sample.middle == 0x02
    assert (sample.name, sample.nqn) == ("ab", "nqn")
    assert repr(sample.numbers) == "[0, 4660, 0, 0]"


def test_bits_change_their_own_bits_only() -> None:
    sample = Sample()
    sample.word = 0xFFFFFFFF
    sample.middle = 0
    assert sample.word == 0xFFFF00FF
    with pytest.raises(OverflowError):
        sample.middle = 256


@given(st.binary(min_size=64, max_size=80))
def test_any_bytes_make_a_structure_that_keeps_them(data: bytes) -> None:
    sample = Sample(data)
    assert bytes(sample) == data[:64]
    assert Sample(bytes(sample)) == sample
    assert repr(sample).startswith("Sample(")


def test_what_does_not_fit_is_refused() -> None:
    sample = Sample()
    with pytest.raises(ValueError, match="needs 64 bytes, got 63"):
        Sample(bytes(63))
    with pytest.raises(OverflowError):
        sample.word = 1 << 32
    with pytest.raises(ValueError, match="longer than 8"):
        sample.name = "123456789"
    with pytest.raises(ValueError, match="do not fit"):
        sample.raw = b"12345"
    with pytest.raises(IndexError):
        sample.numbers[4] = 1


def test_a_view_shares_its_buffer() -> None:
    buffer = memoryview(bytearray(64))
    Sample.over(buffer).word = 5
    assert buffer[0] == 5


def test_field_names_keep_their_order() -> None:
    assert list(Sample.field_names()) == ["word", "name", "nqn", "raw", "numbers", "inner"]
