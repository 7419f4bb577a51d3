"""An ioeventfd on a traditional doorbell: what it tells, and what datamatch would take."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from shadowbell.lab.kvm import Exit, Machine
from shadowbell.lab.programs import CODE, write_values

DOORBELL: Final = 0xC000_1008  # Submission Queue 1 Tail Doorbell of a BAR0 at C000_0000h


@dataclass(frozen=True)
class Lost:
    """Tails ``written``, and all that is known of them: the eventfd's ``count``."""

    written: list[int]
    count: int
    exits: int


def lose_the_value(tails: list[int]) -> Lost:
    """Have a guest write tails to a traditional doorbell with one ioeventfd on it."""
    with Machine() as machine, _eventfd() as fd:
        machine.ioeventfd(DOORBELL, fd)
        machine.map_page(CODE, write_values(DOORBELL, tails))
        machine.run(CODE)
        return Lost(tails, _count(fd), machine.exits[Exit.MMIO])


@dataclass(frozen=True)
class Matched:
    """``counts`` by value, of those with a descriptor; ``exited``: values that came as exits."""

    descriptors: int
    written: list[int]
    counts: dict[int, int]
    exited: list[int]


def match_values(descriptors: int, tails: list[int]) -> Matched:
    """The same with a datamatch descriptor for each value below ``descriptors``."""
    with Machine() as machine, contextlib.ExitStack() as stack:
        fds = [stack.enter_context(_eventfd()) for _ in range(descriptors)]
        for value, fd in enumerate(fds):
            machine.ioeventfd(DOORBELL, fd, value)
        machine.map_page(CODE, write_values(DOORBELL, tails))
        exited: list[int] = []
        machine.run(CODE, lambda _, value: exited.append(value))
        counts = {value: count for value, fd in enumerate(fds) if (count := _count(fd))}
        return Matched(descriptors, tails, counts, exited)


@contextlib.contextmanager
def _eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _count(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0
