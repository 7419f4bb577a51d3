"""The values of `shadowbell bench`'s options; every mistake is a `UserError`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from shadowbell.config import parse_poll_max
from shadowbell.errors import UserError

T = TypeVar("T")

PATTERNS = ("randread", "randwrite", "randrw", "read", "write")
WAYS = ("auto", "trap", "shadow", "mapped")
MAX_DEPTH = 65535


def only(given: argparse.Namespace, mode: str, *allowed: str) -> None:
    """Refuse options that the mode has no use for."""
    for name in vars(given):
        if name not in (mode, *allowed):
            raise UserError(
                f"--{name.replace('_', '-')} has no meaning with --{mode}: leave it out"
            )


def listed(
    given: argparse.Namespace, name: str, default: str, convert: Callable[[str], T]
) -> list[T]:
    """The words of a list, converted, repetitions left out."""
    words = [word.strip() for word in getattr(given, name, default).split(",")]
    return [convert(word) for word in dict.fromkeys(words)]


def choice(what: str, choices: Sequence[str]) -> Callable[[str], str]:
    """Takes one of these."""

    def convert(text: str) -> str:
        if text not in choices:
            raise UserError(f"unknown {what} {text!r}: use {', '.join(choices)}")
        return text

    return convert


def ways(given: argparse.Namespace, default: str) -> list[Any]:
    """The doorbell ways."""
    return listed(given, "doorbells", default, choice("doorbells", WAYS))


def number(option: str, low: int, high: int) -> Callable[[str], int]:
    """Takes a whole number of this range."""

    def convert(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise UserError(f"bad {option} {text!r}: give {low} to {high}")
        return int(text)

    return convert


depth = number("--depth", 1, MAX_DEPTH)
flush_every = number("--flush-every", 0, 1_000_000_000)


def poll(text: str) -> str:
    """A polling window: adaptive, busy or microseconds."""
    return text if text == "adaptive" else str(parse_poll_max(text))


def rate(text: str) -> float:
    """I/Os a second."""
    return float(number("--rate", 1, 10_000_000)(text))


def writing(patterns: Sequence[str], mix: float) -> None:
    """Refuse patterns without writes, which give --flush-every nothing to count."""
    for pattern in patterns:
        if pattern in ("randread", "read"):
            raise UserError(
                f"--flush-every counts writes, and {pattern} has none: use --pattern randwrite, "
                "write or randrw"
            )
        if pattern == "randrw" and not mix:
            raise UserError("--flush-every counts writes, and --mix 0 has none: give more")


def count(given: argparse.Namespace, name: str, default: int, high: int) -> int:
    """A number of at least 1."""
    value: int = getattr(given, name, default)
    if not 1 <= value <= high:
        raise UserError(f"bad --{name} {value}: give 1 to {high}")
    return value


def seconds(given: argparse.Namespace, default: float) -> float:
    """How long a run takes."""
    value: float = getattr(given, "time", default)
    if not 0 < value <= 86400:
        raise UserError(f"bad --time {value:g}: give the seconds of a run")
    return value


def cpus(given: argparse.Namespace) -> tuple[int, int] | None:
    """The driver's processor and the server's."""
    if "cpus" not in given:
        return None
    words = listed(given, "cpus", "", number("--cpus", 0, 4095))
    if len(words) == 1:
        words *= 2
    if len(words) != 2 or not set(words) <= os.sched_getaffinity(0):
        allowed = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        raise UserError(f"bad --cpus {given.cpus!r}: give two of {allowed}, driver's first")
    return words[0], words[1]


def two_cpus() -> tuple[int, int]:
    """Two processors of those we may use; twice the same where there is only one."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]
