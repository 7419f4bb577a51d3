"""A completion queue's shadow head: a full queue, a stalled device and a host that takes entries.

Memory order and laps are as in `submission`. Submission queues are cut down to what matters here:
how many commands wait in each, and whether the device polls it, sleeps with its tail armed (a new
command then wakes it, as `submission` shows), or sleeps because the completion queue was full.

The device is `serve` and `completion_room` of `dataplane/queues.pyx`, `settle` of `loop.pyx`
and the head's part of `doorbell_written` in `channel.pyx`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from submission import ORDER, RING, Compare, Op, linux

Queue = tuple[int, Literal["active", "tail", "full"]]
"""Commands that wait, and how the device watches the submission queue."""


class State(NamedTuple):
    """Everything; ``events`` and ``buffer`` are stores on their way to memory."""

    # the host
    step: int
    old: int
    head: int
    seen: int
    buffer: tuple[int, ...]
    # memory, and whether a register write is under way
    shadow: int
    event: int
    rung: bool
    # the device
    serving: int  # the submission queue that found no room; -1: none
    look: int  # how often it looked at the head
    op: int  # in arm_completions
    known: int  # cq.head
    tail: int
    reserved: int
    stalled: bool
    events: tuple[int, ...]
    queues: tuple[Queue, ...]


@dataclass(frozen=True)
class Completions:
    """``entries`` of the completion queue, ``queues`` submission queues with up to ``depth``.

    ``host`` and ``device``: the order of each side's store, fence and load (the device's last load
    is its second look). ``rouse``: clearing ``stalled`` wakes every submission queue of the
    completion queue, not only the one that looked.
    """

    entries: int
    queues: int = 1
    depth: int = 2
    compare: Compare = linux
    host: tuple[Op, ...] = ORDER
    device: tuple[Op, ...] = ORDER
    rouse: bool = True

    def initial(self) -> State:
        n = self.entries
        idle: Queue = (0, "tail")
        return State(
            step=0, old=n, head=n, seen=n, buffer=(), shadow=n, event=n - 1, rung=False,
            serving=-1, look=0, op=0, known=n, tail=n, reserved=0, stalled=False, events=(),
            queues=(idle,) * self.queues,
        )  # fmt: skip

    def wrong(self, s: State) -> str | None:
        if s.tail - s.shadow >= self.entries:
            return "the device overwrote an entry that the host hasn't taken"
        moving = s.buffer or s.events or s.rung or s.step or s.reserved or s.serving >= 0
        if moving or s.head != s.tail:
            return None
        for number, (waiting, watched) in enumerate(s.queues):
            if waiting and watched == "full" and not any(w == "active" for _, w in s.queues):
                return (
                    f"LOST WAKE-UP: queue {number} sleeps with {waiting} commands and room for all"
                )
        return None

    def steps(self, s: State) -> Iterator[tuple[str, State]]:
        for name, after in self.moves(s):
            yield name, self.lap_back(after)

    def lap_back(self, s: State) -> State:
        n = self.entries
        laps = (min(s.known, s.shadow) - n) // n * n
        event = s.event
        while event + 2 * n <= s.known:
            event += n  # more than a lap old is as good as one lap younger
        names = ("old", "head", "seen", "shadow", "known", "tail")
        return s._replace(
            **{name: getattr(s, name) - laps for name in names},
            event=event - laps,
            buffer=tuple(each if each == RING else each - laps for each in s.buffer),
            events=tuple(each - laps for each in s.events),
        )

    def moves(self, s: State) -> Iterator[tuple[str, State]]:
        yield from self._drain(s)
        yield from self._host(s)
        if s.reserved and not s.events:
            yield "device posts a completion", s._replace(reserved=s.reserved - 1, tail=s.tail + 1)
        if s.serving < 0:
            yield from self._serve(s)
        else:
            yield from self._look(s)

    def _drain(self, s: State) -> Iterator[tuple[str, State]]:
        if s.buffer and s.buffer[0] == RING:
            yield "host's register write leaves", s._replace(buffer=s.buffer[1:], rung=True)
        elif s.buffer:
            yield (
                f"host's head {s.buffer[0]} reaches memory",
                s._replace(buffer=s.buffer[1:], shadow=s.buffer[0]),
            )
        if s.events:
            yield (
                f"device's EventIdx {s.events[0]} reaches memory",
                s._replace(event=s.events[0], events=s.events[1:]),
            )

    # --- the host: new commands, and completions taken

    def _host(self, s: State) -> Iterator[tuple[str, State]]:
        if s.step:
            yield from self._update(s)
            return
        for number, (waiting, watched) in enumerate(s.queues):
            if waiting < self.depth:
                now: Queue = (waiting + 1, "active" if watched == "tail" else watched)
                yield f"host submits to queue {number}", self._queue(s, number, now)
        for head in range(s.head + 1, s.tail + 1):
            yield from self._update(s._replace(old=s.head, head=head))

    def _update(self, s: State) -> Iterator[tuple[str, State]]:
        op = self.host[s.step]
        if op == "fence" and s.buffer:
            return
        name = "fence"
        if op == "store":
            s, name = s._replace(buffer=(*s.buffer, s.head)), f"stores head {s.head}"
        elif op == "load":
            s, name = s._replace(seen=s.event), f"loads EventIdx {s.event}"
        if s.step + 1 < len(self.host):
            yield f"host {name}", s._replace(step=s.step + 1)
            return
        n = self.entries
        rings = self.compare(s.seen % n, s.head % n, s.old % n)
        yield (
            f"host {name}, {'writes the register' if rings else 'does not ring'}",
            s._replace(
                step=0, old=s.head, seen=s.head, buffer=(*s.buffer, RING) if rings else s.buffer
            ),
        )

    # --- the device

    @staticmethod
    def _queue(s: State, number: int, queue: Queue) -> State:
        return s._replace(queues=(*s.queues[:number], queue, *s.queues[number + 1 :]))

    def _room(self, s: State) -> int:
        return self.entries - 1 - (s.tail - s.known) - s.reserved

    def _serve(self, s: State) -> Iterator[tuple[str, State]]:
        if s.rung:
            woken = self._rouse(s) if s.stalled else s
            yield "device takes a register write", woken._replace(rung=False)
        for number, (waiting, watched) in enumerate(s.queues):
            if watched != "active":
                continue
            if not waiting:
                yield f"queue {number} is idle, armed", self._queue(s, number, (0, "tail"))
            elif self._room(s) > 0:
                yield f"device starts a command of queue {number}", self._start(s, number)
            else:
                yield (
                    f"device finds no room for queue {number}",
                    s._replace(serving=number, look=0, op=0),
                )

    @staticmethod
    def _rouse(s: State) -> State:
        return s._replace(
            queues=tuple((n, "active" if how == "full" else how) for n, how in s.queues)
        )

    def _start(self, s: State, number: int) -> State:
        waiting, watched = s.queues[number]
        s = self._queue(s, number, (waiting - 1, watched))
        return s._replace(reserved=s.reserved + 1, serving=-1, look=0, op=0)

    def _look(self, s: State) -> Iterator[tuple[str, State]]:
        """completion_room(): look; no room: store EventIdx, fence, look again."""
        number = s.serving
        if not s.look:
            s = s._replace(known=s.shadow, look=1)
            if self._room(s) > 0:
                yield f"device loads head {s.known}: room", self._start(self._found(s), number)
            else:
                yield f"device loads head {s.known}: full", s._replace(stalled=True)
            return
        op = self.device[s.op]
        if op == "fence" and s.events:
            return
        name = "device fence"
        if op == "store":  # arm_completions()
            s = s._replace(events=(*s.events, s.known))
            name = f"device stores EventIdx {s.known}, armed"
        elif op == "load":
            s, name = s._replace(known=s.shadow), f"device loads head {s.shadow} again"
        if s.op + 1 < len(self.device):
            yield name, s._replace(op=s.op + 1)
        elif self._room(s) > 0:
            yield f"{name}: room", self._start(self._found(s), number)
        else:  # settle(), retire()
            s = self._queue(s, number, (s.queues[number][0], "full"))
            yield f"{name}; queue {number} SLEEPS", s._replace(serving=-1, look=0, op=0)

    def _found(self, s: State) -> State:
        """Room after all: ignore_head()."""
        s = s._replace(stalled=False, events=(*s.events, s.known - 1))
        return self._rouse(s) if self.rouse else s
