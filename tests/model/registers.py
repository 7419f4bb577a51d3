"""The mixed rule of `read_slot`: doorbell registers taken late, beside a slot in memory.

A host that shadows stores each value to the slot, and for some of them writes the register too; one
that doesn't only writes the register, each time. Register writes wait in the socket for as long as
they like. The device takes them in order, and reads the slot.

Taking is two steps (`stored`, then the compare-and-swap) and so is reading (the slot, then
`stored`): on x86 no store buffer can show between them what these steps don't, because the swap
drains it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple


class State(NamedTuple):
    """Values count up without end; the device compares them modulo the entries."""

    value: int  # the host's doorbell
    messages: tuple[int, ...]
    slot: int
    stored: int
    host_stores: bool
    taking: int  # the message being taken, -1: none
    expected: int
    reading: int  # the slot as read, -1: nothing is being read
    known: int  # what the device last made of the slot
    reached: int  # the highest value the slot had


@dataclass(frozen=True)
class Registers:
    """``shadows``: whether the host stores to the slot. ``marks``: whether the device, reading the
    slot, notes that the host stores. ``one_thread``: taking and reading don't overlap. ``forgets``:
    queues are bound to their pages anew now and then, and what was known of the host is forgotten.
    ``waiting``: most messages under way.
    """

    entries: int
    shadows: bool
    marks: bool = True
    one_thread: bool = False
    forgets: bool = False
    waiting: int = 2
    values: int = 0  # how far the host goes; 0: two laps

    def initial(self) -> State:
        return State(0, (), 0, 0, False, -1, 0, -1, 0, 0)

    def wrong(self, s: State) -> str | None:
        if self.shadows and s.slot < s.reached:
            return f"THE SLOT WENT BACK from {s.reached} to {s.slot}"
        still = not s.messages and s.taking < 0
        if not self.shadows and still and s.slot != s.value:
            return f"LOST: the host wrote {s.value} to the register, the slot says {s.slot}"
        return None

    def steps(self, s: State) -> Iterator[tuple[str, State]]:
        yield from self._host(s)
        if self.forgets and s.taking < 0 and s.reading < 0:
            yield "device binds the queue anew", s._replace(stored=s.slot, host_stores=False)
        if s.taking < 0 and s.messages and not (self.one_thread and s.reading >= 0):
            yield from self._take(s)
        elif s.taking >= 0:
            yield from self._swap(s)
        if not (self.one_thread and s.taking >= 0):
            yield from self._read(s)

    def _host(self, s: State) -> Iterator[tuple[str, State]]:
        limit = self.values or 2 * self.entries
        if s.value == limit or s.value + 1 - s.known >= self.entries:
            return
        value = s.value + 1
        sent = s._replace(value=value, messages=(*s.messages, value))
        room = len(s.messages) < self.waiting
        if not self.shadows:
            if room:
                yield f"host writes register {value}", sent
            return
        stored = s._replace(value=value, slot=value, reached=value)
        yield f"host stores {value}", stored
        if room:
            yield (
                f"host stores {value} and writes the register",
                stored._replace(messages=sent.messages),
            )

    def _take(self, s: State) -> Iterator[tuple[str, State]]:
        value, rest = s.messages[0], s.messages[1:]
        if s.host_stores:
            yield f"device drops register {value}", s._replace(messages=rest)
        else:
            yield (
                f"device takes register {value}: stored = {value}",
                s._replace(messages=rest, taking=value, expected=s.stored, stored=value),
            )

    def _swap(self, s: State) -> Iterator[tuple[str, State]]:
        after = s._replace(taking=-1, expected=0)
        if s.slot % self.entries == s.expected % self.entries:
            yield (
                f"device swaps the slot from {s.slot} to {s.taking}",
                after._replace(slot=s.taking),
            )
        else:
            yield "device finds that the host stores", after._replace(host_stores=True)

    def _read(self, s: State) -> Iterator[tuple[str, State]]:
        if s.reading < 0:
            if s.slot != s.known:
                yield f"device reads {s.slot}", s._replace(reading=s.slot)
            return
        foreign = s.reading % self.entries != s.stored % self.entries
        marked = s.host_stores or (self.marks and foreign)
        name = "takes it for the host's store" if marked and not s.host_stores else "uses it"
        after = s._replace(reading=-1, known=max(s.known, s.reading), host_stores=marked)
        yield f"device compares {s.reading} with stored {s.stored}, {name}", after
