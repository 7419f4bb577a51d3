"""`parse_size`: powers of 1024, whole bytes, one line for everything else."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shadowbell.config import MAX_SIZE, parse_size
from shadowbell.errors import UserError

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("1G", 2**30),
        ("512m", 2**29),
        ("1.5G", 3 * 2**29),
        ("1GiB", 2**30),
        (" 2 T ", 2**41),
        ("8191P", 8191 * 2**50),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "G",
        "12Q",
        "1GB",
        "-1",
        "0",
        "0K",
        "1.3",
        "1.G",
        ".5G",
        "1e9",
        "0x10",
        "8192P",
        "1 2",
        "٣",
    ],
)
def test_bad_sizes_are_named(text: str) -> None:
    with pytest.raises(UserError, match="bad size") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


@given(st.integers(1, MAX_SIZE), st.sampled_from(sorted(UNITS)), st.sampled_from(["", "iB"]))
def test_number_and_unit(number: int, unit: str, suffix: str) -> None:
    text = f"{number}{unit}{suffix if unit else ''}"
    if number * UNITS[unit] > MAX_SIZE:
        with pytest.raises(UserError, match="between"):
            parse_size(text)
    else:
        assert parse_size(text) == number * UNITS[unit]


@given(st.integers(1, 2**20), st.integers(0, 2**10 - 1))
def test_fractions_are_exact(whole: int, part: int) -> None:
    fraction = f"{part / 2**10:.10f}".partition(".")[2]
    assert parse_size(f"{whole}.{fraction}K") == whole * 2**10 + part


@given(st.text())
@example("9" * 5000)
@example("1." + "0" * 5000)
def test_any_text_gives_bytes_or_one_line(text: str) -> None:
    size, line = 1, ""
    try:
        size = parse_size(text)
    except UserError as error:
        line = str(error)
    assert 0 < size <= MAX_SIZE
    assert "\n" not in line
