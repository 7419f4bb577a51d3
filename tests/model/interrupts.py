"""A completion queue's interrupt: what is signalled, what is held back, and a host that sleeps.

The host is Linux' nvme_irq: a signal wakes it, it takes entries until the phase tag says that there
is none, stores its head, and sleeps until the next signal. It may store its head in between, too.
The device is `dataplane/interrupts.pyx`, and `Engine.set_vector` where the client masks the vector.

Memory order is as in `submission`: entries and heads reach memory in order and late. An eventfd
write is a system call, so it comes after the entries before it, unless ``signals_early``. Indices
count up without end and are brought down to the oldest that still matters.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple


def verdict(waiting: int, unsignalled: int) -> Literal["drop", "raise", "hold"]:
    """What to do about entries that no interrupt was raised for, ``waiting`` not yet taken.

    More waiting than unsignalled: an entry that was signalled isn't taken yet, so the host is still
    to come. None waiting: it came by itself.
    """
    if not waiting:
        return "drop"
    return "hold" if waiting > unsignalled else "raise"


class State(NamedTuple):
    """Everything; ``heads`` are the host's stores on their way to memory."""

    # the host
    where: Literal["asleep", "look", "drain"]
    taken: int
    heads: tuple[int, ...]
    # memory and the eventfd
    head: int
    visible: int
    signal: bool
    masked: bool
    # the device
    tail: int
    unsignalled: int
    seen: int | None  # the head as loaded, until something is done about it
    asleep: bool


@dataclass(frozen=True)
class Interrupts:
    """``depth``: commands the host keeps under way. ``threshold``: of Interrupt Coalescing.

    ``deadline``: an entry isn't held back for ever. ``sleeps``: the device may sleep while it holds
    an interrupt back. ``lazy``: the host may leave its head unstored. ``polls``: the host also
    looks without an interrupt. ``puts_off``: the device may hold a first interrupt for a while
    (moderation.pxd). ``masks``: the client takes the vector's eventfd away and gives it
    back, and a signal that nobody had read is gone.

    The rest are mistakes. ``forgets``: what is held back isn't looked at again. ``signals_early``:
    before the entries are in memory. ``rechecks`` False: unmasking doesn't look for entries.
    ``drains_late``: the host reads its eventfd after it has looked.
    """

    depth: int
    threshold: int = 1
    deadline: bool = True
    sleeps: bool = True
    lazy: bool = False
    polls: bool = False
    puts_off: bool = False
    masks: bool = False
    forgets: bool = False
    signals_early: bool = False
    rechecks: bool = True
    drains_late: bool = False

    def initial(self) -> State:
        return State("asleep", 0, (), 0, 0, False, False, 0, 0, None, False)

    def wrong(self, s: State) -> str | None:
        host_rests = s.where == "asleep" and not s.signal and not s.heads and not s.masked
        if not host_rests or s.seen is not None or s.visible < s.tail or s.taken == s.tail:
            return None
        if not s.unsignalled:
            return f"LOST: {s.tail - s.taken} entries wait, the host sleeps, the device is done"
        if self.deadline:
            return None
        if self.puts_off:
            return f"LOST: the device may put {s.unsignalled} entries off for ever"
        if s.asleep or s.unsignalled < self.threshold:
            return f"LOST: the device holds {s.unsignalled} entries back and nothing wakes it"
        if verdict(s.tail - s.head, s.unsignalled) == "hold":
            return f"LOST: the device waits for a head that the host keeps at {s.head}"
        return None

    def steps(self, s: State) -> Iterator[tuple[str, State]]:
        for name, after in self._moves(s):
            yield name, self._lowered(after)

    def _lowered(self, s: State) -> State:
        base = s.head if s.seen is None else min(s.seen, s.head)
        return s._replace(
            taken=s.taken - base,
            heads=tuple(head - base for head in s.heads),
            head=s.head - base,
            visible=s.visible - base,
            tail=s.tail - base,
            seen=None if s.seen is None else s.seen - base,
            # No more than depth entries ever wait, so that beyond it all numbers do the same.
            unsignalled=min(s.unsignalled, max(self.depth, self.threshold)),
        )

    def _moves(self, s: State) -> Iterator[tuple[str, State]]:
        if s.heads:
            yield (
                f"head {s.heads[0]} reaches memory",
                s._replace(head=s.heads[0], heads=s.heads[1:]),
            )
        if s.visible < s.tail:
            yield f"entry {s.visible} reaches memory", s._replace(visible=s.visible + 1)
        yield from self._host(s)
        yield from self._device(s)
        if self.masks and s.seen is None and s.visible == s.tail:
            yield from self._client(s)

    # --- the host

    def _host(self, s: State) -> Iterator[tuple[str, State]]:
        if s.where == "asleep":
            if s.signal:
                yield "host is woken", s._replace(where="look", signal=self.drains_late)
            if self.polls:
                yield "host looks by itself", s._replace(where="look")
            return
        if s.where == "drain":
            yield "host reads its eventfd, sleeps", s._replace(where="asleep", signal=False)
            return
        stored = s.heads[-1] if s.heads else s.head
        storing = s._replace(heads=(*s.heads, s.taken))
        if s.visible > s.taken:
            yield f"host takes entry {s.taken}", s._replace(taken=s.taken + 1)
            if stored != s.taken:
                yield f"host stores head {s.taken}, goes on", storing
            return
        after: Literal["drain", "asleep"] = "drain" if self.drains_late else "asleep"
        if stored == s.taken or self.lazy:
            yield "host finds no more", s._replace(where=after)
        if stored != s.taken:
            yield f"host finds no more, stores head {s.taken}", storing._replace(where=after)

    # --- the device

    def _device(self, s: State) -> Iterator[tuple[str, State]]:
        if s.seen is None:
            if s.tail - s.taken < self.depth and s.tail - s.head < self.depth:
                posted = s._replace(tail=s.tail + 1, unsignalled=s.unsignalled + 1, asleep=False)
                yield f"device posts entry {s.tail}", posted
            if not s.asleep and s.unsignalled >= self.threshold:
                yield f"device loads head {s.head}", s._replace(seen=s.head)
            if self.sleeps and not s.asleep:
                yield "device sleeps", s._replace(asleep=True)
            if self.deadline and s.unsignalled and self._may_signal(s):
                yield "the time is over: device signals", self._signalled(s)
            return
        waiting = s.tail - s.seen
        s = s._replace(seen=None)
        match verdict(waiting, s.unsignalled):
            case "drop":
                yield "device sees all taken", s._replace(unsignalled=0)
            case "hold":
                held = 0 if self.forgets else s.unsignalled
                yield "device holds its interrupt back", s._replace(unsignalled=held)
            case "raise":
                if self.puts_off:
                    yield "device puts its interrupt off", s
                if self._may_signal(s):
                    yield "device signals", self._signalled(s)
                else:
                    yield "device isn't through with its entries", s

    def _may_signal(self, s: State) -> bool:
        return s.visible == s.tail or self.signals_early

    @staticmethod
    def _signalled(s: State) -> State:
        return s._replace(signal=not s.masked or s.signal, unsignalled=0, asleep=False)

    # --- the client of the vector

    def _client(self, s: State) -> Iterator[tuple[str, State]]:
        if not s.masked:
            yield "client masks", s._replace(masked=True, signal=False, unsignalled=0)
            return
        waiting = s.tail != s.head and self.rechecks
        yield "client unmasks", s._replace(masked=False, signal=waiting, unsignalled=0)
