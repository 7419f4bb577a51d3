"""Words from other threads: which of them wakes an IOThread, step by step, on x86-TSO.

The thread is `rest` in `dataplane/loop.pyx` with `await_notes` and `noted`, a poster is `post` in
`block/sources.pyx`. The thread's stores go into a buffer of its own, oldest first, and reach memory
at any later time; a fence waits until it is empty. What posters do to memory is atomic, and so at
once.

Notes never run out: counts are taken from how many the thread has taken. So what holds, holds for
any number of notes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

Look = Literal["add", "count", "which", "asleep"]
POST: tuple[Look, ...] = ("add", "count", "which", "asleep")
Op = Literal["which", "asleep", "fence", "look"]
SLEEP: tuple[Op, ...] = ("which", "asleep", "fence", "look")


class Poster(NamedTuple):
    step: int = 0  # in its program; 0: it has nothing to say
    number: int = 0  # its note's, by its own count
    chosen: bool = False  # its note is the one to wake for, as it found it


class State(NamedTuple):
    """Everything."""

    posters: tuple[Poster, ...]
    added: int = 0  # notes in the list
    posted: int = 0
    wake_at: int = 0
    sleeping: bool = False
    kicked: bool = False
    # the thread
    where: Literal["awake", "resting", "asleep"] = "awake"
    step: int = 0
    target: int = 0  # the wake_at that it stored last
    stores: tuple[tuple[Literal["which", "asleep"], int], ...] = ()


@dataclass(frozen=True)
class Notes:
    """``shares``: so many notes may be worth a wake-up. ``post`` and ``sleep``: each side's order.

    ``others``: the thread may also be woken by something else, at any time.
    """

    posters: int
    shares: tuple[int, ...] = (1,)
    post: tuple[Look, ...] = POST
    sleep: tuple[Op, ...] = SLEEP
    others: bool = True

    def initial(self) -> State:
        return State((Poster(),) * self.posters)

    def wrong(self, s: State) -> str | None:
        idle = all(poster.step == 0 for poster in s.posters)
        if s.where == "asleep" and idle and not s.kicked and s.added >= s.target:
            return f"LOST WAKE-UP: asleep for {s.target} notes, {s.added} are there"
        return None

    def steps(self, s: State) -> Iterator[tuple[str, State]]:
        for index, poster in enumerate(s.posters):
            yield from self._post(s, index, poster)
        if s.stores:
            yield f"the store to {s.stores[0][0]} reaches memory", self._drained(s)
        yield from self._thread(s)

    def _drained(self, s: State) -> State:
        (place, value), rest = s.stores[0], s.stores[1:]
        if place == "which":
            return s._replace(wake_at=value, stores=rest)
        return s._replace(sleeping=bool(value), stores=rest)

    def _post(self, s: State, index: int, poster: Poster) -> Iterator[tuple[str, State]]:
        if poster.step == 0 and s.added + sum(p.step > 0 for p in s.posters) >= self.posters + 1:
            return  # enough is under way
        op = self.post[poster.step]
        kick = False
        if op == "add":
            s = s._replace(added=s.added + 1)
        elif op == "count":
            s = s._replace(posted=s.posted + 1)
            poster = poster._replace(number=s.posted)
        elif op == "which":
            # Before it is counted, a poster can only guess its number.
            counted = self.post.index("count") < poster.step
            number = poster.number if counted else s.posted + 1
            # From here on its number is of no interest, if it has one.
            poster = poster._replace(chosen=number == s.wake_at, number=0)
        else:
            kick = poster.chosen and s.sleeping
        last = poster.step + 1 == len(self.post)
        poster = Poster() if last else poster._replace(step=poster.step + 1)
        # Who of them is who makes no difference.
        posters = tuple(sorted((*s.posters[:index], poster, *s.posters[index + 1 :])))
        after = s._replace(posters=posters, kicked=s.kicked or kick)
        yield f"poster {index}: {op}{', KICKS' if kick else ''}", after

    def _thread(self, s: State) -> Iterator[tuple[str, State]]:
        if s.where == "awake":
            if s.added:
                yield f"takes {s.added}", self._taken(s)
            for share in self.shares:
                after = s._replace(where="resting", step=0, target=share)
                yield f"will sleep for {share}", after
        elif s.where == "asleep":
            if s.kicked or self.others:
                how = "kicked" if s.kicked else "woken by something else"
                yield how, self._up(s._replace(kicked=False))
        else:
            yield from self._rest(s)

    def _rest(self, s: State) -> Iterator[tuple[str, State]]:
        op = self.sleep[s.step]
        if op == "fence" and s.stores:
            return
        if op == "which":
            s = s._replace(stores=(*s.stores, ("which", s.target)))
        elif op == "asleep":
            s = s._replace(stores=(*s.stores, ("asleep", 1)))
        elif op == "look" and s.posted >= s.target:
            yield "enough are there", self._up(s)
            return
        if s.step + 1 < len(self.sleep):
            yield f"thread: {op}", s._replace(step=s.step + 1)
        else:
            yield f"thread: {op}, SLEEPS", s._replace(where="asleep", step=0)

    def _up(self, s: State) -> State:
        return s._replace(where="awake", step=0, target=0, stores=(*s.stores, ("asleep", 0)))

    def _taken(self, s: State) -> State:
        """All that are in the list; counts are taken from here on."""
        count = s.added
        least = -self.posters - max(self.shares)  # older ones are as good as this
        return s._replace(
            added=0,
            posted=s.posted - count,
            wake_at=max(s.wake_at - count, least),
            stores=tuple(
                (place, max(value - count, least) if place == "which" else value)
                for place, value in s.stores
            ),
            posters=tuple(
                poster._replace(number=max(poster.number - count, least))
                if self.post.index("count") < poster.step <= self.post.index("which")
                else poster
                for poster in s.posters
            ),
        )
