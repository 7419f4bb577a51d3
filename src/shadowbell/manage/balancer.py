"""Moves queues from an IOThread that has too much to do to one that has little.

It costs nothing while nothing happens: IOThreads add up their busy time as they go, and write an
eventfd when they have been busy for a while. Only then does the reactor look, every SAMPLE seconds
and ever more seldom when there is nothing to gain, until no IOThread is busy any more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from shadowbell.dataplane import IOThread
    from shadowbell.manage.port import Port

ALARM_NS = 100_000_000  # of busy time, before anybody looks
SAMPLE = 0.1
SELDOM = 1.6  # seconds between looks when moving gains nothing
OVERLOADED = 0.4  # of its time an IOThread finds work
GAIN = 0.15  # what the busiest IOThread must be spared
HELD = 3  # samples in a row that want the same, before it is done
SETTLING = 1.0  # seconds after a move
PATIENCE_MS = 2  # the reactor waits no longer for a queue's commands to end


class Queue(NamedTuple):
    """A completion queue with all that use it: `disk` and `cqid` name it."""

    disk: int
    cqid: int


class Load(NamedTuple):
    """What a queue cost since the sample before, in any unit; `fixed` queues don't move."""

    iothread: int
    work: int
    fixed: bool


class Move(NamedTuple):
    """What would help."""

    queue: Queue
    source: int
    target: int


def choose_move(busy: Sequence[float], loads: Mapping[Queue, Load]) -> Move | None:
    """Return the move that spares the busiest IOThread most, if one is worth it.

    `busy`: the part of its time that each IOThread was busy, 0 to 1. Its queues share it by their
    work. A queue that is the only load of its IOThread never moves: that gains nothing.
    """
    source = max(range(len(busy)), key=busy.__getitem__)
    target = min(range(len(busy)), key=busy.__getitem__)
    total = sum(load.work for load in loads.values() if load.iothread == source)
    if busy[source] < OVERLOADED or not total:
        return None
    best, best_peak = None, busy[source] - GAIN
    for queue, load in loads.items():
        if load.iothread != source or load.fixed:
            continue
        share = busy[source] * load.work / total
        peak = max(busy[source] - share, busy[target] + share)
        if peak < best_peak:
            best, best_peak = Move(queue, source, target), peak
    return best


class Balancer:
    """Watches the IOThreads for the reactor: `fileno` becomes readable when they get busy.

    Then call `turn` whenever `seconds_left` are over.
    """

    def __init__(self, iothreads: Sequence[IOThread], ports: Sequence[Port]) -> None:
        self._iothreads = iothreads
        self._ports = ports
        self._alarm = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._next: float | None = None
        self._pause = SAMPLE
        self._before = 0.0
        self._busy: list[int] = []
        self._work: dict[Queue, int] = {}
        self._wanted: tuple[int, int] | None = None
        self._times = 0
        self._watch()

    def fileno(self) -> int:
        return self._alarm

    def close(self) -> None:
        """The IOThreads must have ended."""
        os.close(self._alarm)

    def seconds_left(self) -> list[float]:
        """Until `turn` wants to be called, one number; none: not before `woken`."""
        return [] if self._next is None else [self._next - time.monotonic()]

    def woken(self) -> None:
        """An IOThread was busy for a while."""
        os.eventfd_read(self._alarm)
        if self._next is None:
            self._pause = SAMPLE
            self._sample()
            self._next = self._before + self._pause

    def turn(self) -> None:
        """Compare with the last sample, if it is time; perhaps move a queue."""
        if self._next is None or time.monotonic() < self._next:
            return
        before, busy_before, work_before = self._before, self._busy, self._work
        self._sample()
        span = (self._before - before) * 1e9
        busy = [
            min((now - then) / span, 1.0) for now, then in zip(self._busy, busy_before, strict=True)
        ]
        if max(busy) < OVERLOADED:
            self._wanted = None
            self._next = None
            self._watch()
            return
        move = choose_move(busy, self._loads(work_before))
        # Which of two equal queues would be moved may change; from where to where may not.
        wanted = None if move is None else (move.source, move.target)
        self._times = self._times + 1 if wanted == self._wanted else 1
        self._wanted = wanted
        self._pause = SAMPLE if move is not None else min(2 * self._pause, SELDOM)
        if move is not None and self._times >= HELD:
            port = self._ports[move.queue.disk]
            port.move_queue(move.queue.cqid, move.target, patience_ms=PATIENCE_MS)
            self._wanted = None
            self._pause = SETTLING
        self._next = self._before + self._pause

    def _watch(self) -> None:
        for iothread in self._iothreads:
            iothread.set_alarm(self._alarm, ALARM_NS)

    def _sample(self) -> None:
        self._before = time.monotonic()
        self._busy = [iothread.busy_ns for iothread in self._iothreads]
        self._place: dict[Queue, int] = {}
        self._work = {}
        for disk, port in enumerate(self._ports):
            for cqid, iothread, work in port.queue_loads():
                self._place[Queue(disk, cqid)] = iothread
                self._work[Queue(disk, cqid)] = work

    def _loads(self, before: Mapping[Queue, int]) -> dict[Queue, Load]:
        return {
            queue: Load(
                self._place[queue],
                max(work - before.get(queue, work), 0),
                fixed=self._ports[queue.disk].config.iothreads is not None,
            )
            for queue, work in self._work.items()
        }
