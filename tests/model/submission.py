"""A submission queue's shadow doorbell: driver and device, step by step, on x86-TSO.

Memory order: each side's stores go into a buffer of its own, oldest first, and reach memory at any
later time; a load takes what memory holds (neither side loads what it stores itself); a fence waits
until the own buffer is empty. A register write is a store to the device: it leaves the buffer in
its turn, and then is under way until the device takes it. A completion goes straight to memory, at
any time after its command was consumed at which the device's buffer is empty: that is in order, and
as late as a buffer could make it.

Commands never run out: indices that count up without end are brought down by whole laps, since
nothing looks at them but modulo the queue's entries. So what holds, holds for any number of laps.

The device is `dataplane/doorbells.pxd` with `serve`, `settle` and `activate` around it: comments
name the part that a step stands for.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

Compare = Callable[[int, int, int], bool]
Op = Literal["store", "fence", "load"]
ORDER: tuple[Op, ...] = ("store", "fence", "load")


def linux(event: int, new: int, old: int) -> bool:
    """Linux, nvme_dbbuf_need_event(): EventIdx in [old, new)."""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF


def inclusive(event: int, new: int, old: int) -> bool:
    """SPDK's and libvfn's form: EventIdx in [old, new]."""
    return (new - event) & 0xFFFF <= (new - old) & 0xFFFF


def distance(start: int, end: int, entries: int) -> int:
    """Entries from start up to end on the ring."""
    return (end - start) % entries


class State(NamedTuple):
    """Everything. An EventIdx is (index, armed): whether the device asked to be rung by it."""

    # the driver
    step: int  # in its program; 0: nothing is being submitted
    old: int
    tail: int
    seen: int  # EventIdx as loaded
    seen_armed: bool
    buffer: tuple[int, ...]  # tails on their way to memory; RING: a register write
    # memory, and whether a register write is under way
    shadow: int
    event: int
    armed: bool
    completed: int
    rung: bool
    # the device
    where: str  # "poll", "consumed", "arm", "asleep"
    arm_step: int
    looked: int  # the tail as last loaded
    head: int
    before: int  # head before the look that found work
    last_event: int
    events: tuple[tuple[int, bool], ...]  # EventIdx stores on their way to memory
    # not part of either: how the last register write came about, where nobody had asked for it
    noise: str


RING = -1_000_000
INDICES = ("old", "tail", "seen", "shadow", "completed", "looked", "head", "before")


@dataclass(frozen=True)
class Submission:
    """``depth``: commands the driver keeps outstanding; ``batch``: most it adds by one update.

    ``driver`` and ``device``: the order of each side's store, fence and load. ``refresh`` "always"
    stores EventIdx after each look that found work, "half" as the code does, when half of the lap
    is used up. ``place``: behind the first entry of a short batch, as the code does, or always
    behind the head. ``sleeps`` False: the device polls for ever. ``silent``: the kinds of unasked
    register writes that count as errors: "raced", "overran", "late".
    """

    entries: int
    depth: int
    batch: int
    compare: Compare = linux
    driver: tuple[Op, ...] = ORDER
    device: tuple[Op, ...] = ORDER
    refresh: Literal["half", "always"] = "half"
    place: Literal["first", "head"] = "first"
    sleeps: bool = True
    silent: frozenset[str] = frozenset()

    def initial(self) -> State:
        n = self.entries  # everything one lap on, so that no index is negative
        return State(
            *(0, n, n, n, False, (), n, n - 1, False, n, False),
            *("poll", 0, n, n, n, n - 1, (), ""),
        )

    def wrong(self, s: State) -> str | None:
        if s.tail - s.completed >= self.entries:
            return "the driver overran the queue"
        still = not s.buffer and not s.events and not s.rung and s.step == 0
        if still and s.where == "asleep" and s.shadow != s.head:
            return f"LOST WAKE-UP: asleep at head {s.head}, tail {s.shadow}, nothing under way"
        if s.noise in self.silent:
            return f"UNASKED ({s.noise}): rung by the update to {s.tail}"
        return None

    def steps(self, s: State) -> Iterator[tuple[str, State]]:
        for name, after in self.moves(s):
            yield name, self.lap_back(after)

    def moves(self, s: State) -> Iterator[tuple[str, State]]:
        yield from self._drain(s)
        if s.step == 0:
            room = min(self.depth - (s.tail - s.completed), self.batch)
            for count in range(1, room + 1):
                yield from self._submit(s._replace(old=s.tail, tail=s.tail + count))
        else:
            yield from self._submit(s)
        if s.completed < s.head and not s.events:
            yield f"device completes command {s.completed}", s._replace(completed=s.completed + 1)
        yield from self._serve(s)

    def lap_back(self, s: State) -> State:
        """The same state, its indices as small as can be."""
        n = self.entries
        laps = (s.completed - n) // n * n
        # An EventIdx more than a lap old is as good as one a lap younger.
        event, last = s.event, s.last_event
        while event + 2 * n <= s.completed:
            event += n
        while last + 2 * n <= s.completed:
            last += n
        if not laps:
            return (
                s
                if (event, last) == (s.event, s.last_event)
                else s._replace(event=event, last_event=last)
            )
        return s._replace(
            **{name: getattr(s, name) - laps for name in INDICES},
            event=event - laps,
            last_event=last - laps,
            buffer=tuple(t if t == RING else t - laps for t in s.buffer),
            events=tuple((index - laps, armed) for index, armed in s.events),
        )

    def _drain(self, s: State) -> Iterator[tuple[str, State]]:
        if s.buffer and s.buffer[0] == RING:
            yield "driver's register write leaves", s._replace(buffer=s.buffer[1:], rung=True)
        elif s.buffer:
            yield (
                f"driver's tail {s.buffer[0]} reaches memory",
                s._replace(buffer=s.buffer[1:], shadow=s.buffer[0]),
            )
        if s.events:
            index, armed = s.events[0]
            yield (
                f"device's EventIdx {index} reaches memory",
                s._replace(events=s.events[1:], event=index, armed=armed),
            )

    # --- the driver: store the tail, fence, load EventIdx, compare, maybe write the register

    def _submit(self, s: State) -> Iterator[tuple[str, State]]:
        op = self.driver[s.step]
        if op == "fence" and s.buffer:
            return
        name = "fence"
        if op == "store":
            s, name = s._replace(buffer=(*s.buffer, s.tail)), f"stores tail {s.tail}"
        elif op == "load":
            s, name = s._replace(seen=s.event, seen_armed=s.armed), f"loads EventIdx {s.event}"
        if s.step + 1 < len(self.driver):
            yield f"driver {name}", s._replace(step=s.step + 1)
        else:
            after = self._compare(s)
            what = "writes the register" if after.buffer[-1:] == (RING,) else "doesn't ring"
            yield f"driver {name}, {what}", after

    def _compare(self, s: State) -> State:
        n, noise, buffer = self.entries, "", s.buffer
        if self.compare(s.seen % n, s.tail % n, s.old % n):
            buffer = (*buffer, RING)
            if not s.seen_armed:
                noise = "overran" if s.seen + n <= s.tail else "raced"
            elif s.seen not in range(s.old, s.tail):
                noise = "late"
        if noise not in self.silent:
            noise = ""
        s = s._replace(step=0, buffer=buffer, noise=noise)
        return s._replace(old=s.tail, seen=s.tail, seen_armed=False)  # of no interest any more

    # --- the device

    def _serve(self, s: State) -> Iterator[tuple[str, State]]:
        n = self.entries
        if s.where == "poll":
            if s.rung:
                yield "device takes a register write, awake", s._replace(rung=False)
            count = distance(s.head % n, s.shadow % n, n)
            if count:  # serve()
                found = s._replace(where="consumed", looked=s.shadow, before=s.head)
                yield (
                    f"device loads tail {s.shadow}, consumes {count}",
                    found._replace(head=s.head + count),
                )
            elif self.sleeps:  # settle()
                yield "device has nothing to do, arms", s._replace(where="arm", arm_step=0)
        elif s.where == "consumed":  # stay_awake()
            after = s._replace(where="poll", looked=s.head, before=s.head)
            if self.refresh == "always" or 2 * distance(s.last_event, s.looked, n) >= n:
                short = 4 * (s.head - s.before) <= n and self.place == "first"
                after = self._event(after, (s.before if short else s.head) - 1, False)
            yield f"device keeps awake, EventIdx {after.last_event}", after
        elif s.where == "arm":
            yield from self._arm(s)
        elif s.rung:  # activate() and wake()
            after = s._replace(where="poll", rung=False)
            yield "device is woken", self._event(after, s.head - 1, False)

    def _event(self, s: State, index: int, armed: bool) -> State:
        return s._replace(last_event=index, events=(*s.events, (index, armed)))

    def _arm(self, s: State) -> Iterator[tuple[str, State]]:
        op = self.device[s.arm_step]
        if op == "fence" and s.events:
            return
        name = "fence"
        if op == "store":
            s, name = self._event(s, s.head, True), f"stores EventIdx {s.head}, armed"
        elif op == "load":
            s, name = s._replace(looked=s.shadow), f"loads tail {s.shadow}"
        if s.arm_step + 1 < len(self.device):
            yield f"device {name}", s._replace(arm_step=s.arm_step + 1)
            return
        slept = s.looked == s.head
        after = s._replace(where="asleep" if slept else "poll", arm_step=0, looked=s.head)
        yield f"device {name}, {'SLEEPS' if slept else 'stays awake'}", after
