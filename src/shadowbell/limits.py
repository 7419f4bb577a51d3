"""How much a namespace may do: commands and bytes a second, and what may be made up for."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from shadowbell.errors import UserError

MAX_IOPS = 100_000_000
MIN_BPS, MAX_BPS = 65536, 2**40
MIN_BURST, MAX_BURST = 0.001, 3600.0
DEFAULT_BURST = 0.05
"""Seconds: more than a busy machine lets a thread sleep too long, less than anybody notices."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6}


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`iops` commands and `bps` bytes a second, 0: no limit; `burst` in seconds.

    What a namespace left unused within `burst` seconds it may do at once. Raises UserError when a
    limit can't be kept.
    """

    iops: int = 0
    bps: int = 0
    burst: float = DEFAULT_BURST

    def __post_init__(self) -> None:
        if self.iops:
            _check_range("iops", self.iops, 1, MAX_IOPS)
        if self.bps:
            _check_range("bps", self.bps, MIN_BPS, MAX_BPS)
        _check_range("burst", self.burst, MIN_BURST, MAX_BURST)


NAMES = ("iops", "bps", "burst")


def parse_limit(name: str, text: str) -> int | float:
    """The value of one of NAMES: "2000" or "2K" commands, a size, or seconds. Raises UserError."""
    # config reads specifications with this, and is what parse_size belongs to.
    from shadowbell.config.sizes import parse_size

    if name == "bps":
        return 0 if text == "0" else parse_size(text)
    try:
        if name == "burst":
            return float(text)
        unit = text[-1:].upper() if not text[-1:].isdigit() else ""
        return int(text.removesuffix(text[-1:]) if unit else text) * _UNITS[unit]
    except (ValueError, KeyError):
        example = "0.5" if name == "burst" else "2000"
        raise UserError(f"bad {name} {text!r}: write a number such as {example}") from None


def parse_limits(words: Iterable[str]) -> Limits:
    """Limits from words such as "iops=2000"; none of them, or "none", is no limit. UserError."""
    given: dict[str, int | float] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if word == "none":
            continue
        if name not in NAMES or not equals:
            raise UserError(f"unknown limit {word!r}: use iops=N, bps=SIZE, burst=SECONDS or none")
        given[name] = parse_limit(name, value)
    return msgspec.convert(given, Limits)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{name} {value:g} is out of range: give {low:g} to {high:g}")
