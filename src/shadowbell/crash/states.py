"""Every disk that a power failure could have left.

Power fails between two entries of the recording. By then a change is *durable* when it completed
with FUA, or completed before a flush began that has completed too. Each block then holds

- the data of any change to it that had begun (nobody knows what of a volatile cache, or of a change
  under way, got to the medium),
- but nothing that completed before a durable change to the block began: that has replaced it,
- and what was there before the recording only if none of the block's changes is durable.

One block is never torn (AWUPF is 0: one block). With granularity "block" each block is as it may
be, whatever its neighbours are; with "command" every change is there as a whole or not at all.

The rules are those of an honest device. The others lie in the ways that real ones did.
"""

from __future__ import annotations

import itertools
import math
import os
import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from shadowbell.crash.recording import Change, Flush, Recording
from shadowbell.errors import UserError

Granularity = Literal["command", "block"]
Device = Literal["honest", "drops-flushes", "early-flushes", "ignores-fua"]
"""What it does: all it promised; nothing at a flush; the work of a flush only by the end of the
next; nothing special at FUA."""

Piece = tuple[int, int, Change | None]
"""Offset and length in bytes, and whose data are there; None: what was there before."""

_COPY = 1 << 20


@dataclass(frozen=True)
class State:
    """A disk after a power failure at `moment`. `pieces` don't overlap; what isn't in them is as
    it was before the recording."""

    recording: Recording
    moment: int
    pieces: Sequence[Piece]
    lost: int
    """Changes that had begun and of which nothing, or not all that could be, is there."""

    @property
    def time(self) -> int:
        """ns of CLOCK_MONOTONIC up to which the disk had lived; 0 before the first entry."""
        return self.recording.times[self.moment - 1] if self.moment else 0

    def contents(self, base: bytes | None = None) -> bytearray:
        """The whole disk in memory; `base`: what it held before the recording (None: zeros)."""
        disk = bytearray(base) if base is not None else bytearray(self.recording.size)
        for offset, length, change in self.pieces:
            if change is not None:
                disk[offset : offset + length] = self.recording.data(change, offset, length)
        return disk

    @contextmanager
    def image(
        self, path: str | os.PathLike[str], base: str | os.PathLike[str] | None = None
    ) -> Iterator[Path]:
        """The disk as a sparse file at `path`, removed at the end of the with block.

        `base`: an image of what the disk held before the recording (None: zeros).
        """
        try:
            self.write(path, base)
            yield Path(path)
        finally:
            Path(path).unlink(missing_ok=True)

    def write(
        self, path: str | os.PathLike[str], base: str | os.PathLike[str] | None = None
    ) -> None:
        """Write the disk as a sparse file; see `image`."""
        with Path(path).open("wb") as file:
            file.truncate(self.recording.size)
            if base is not None:
                _copy_data(Path(base), file.fileno(), self.recording.size)
            for offset, length, change in self.pieces:
                if change is None or (base is None and change.data_at is None):
                    continue
                for start in range(offset, offset + length, _COPY):
                    part = min(_COPY, offset + length - start)
                    os.pwrite(file.fileno(), self.recording.data(change, start, part), start)


class CrashStates:
    """The states of a recording. `seed` decides which are made where there are too many."""

    def __init__(
        self,
        recording: Recording,
        *,
        granularity: Granularity = "command",
        device: Device = "honest",
        seed: int = 0,
    ) -> None:
        if granularity not in get_args(Granularity) or device not in get_args(Device):
            raise UserError(f"no granularity {granularity!r} or no device {device!r}")
        self.recording = recording
        self.granularity = granularity
        self.device = device
        self._random = random.Random(seed)
        edges = {edge for c in recording.changes for edge in (c.offset, c.offset + c.length)}
        # Extents: from each edge to the next. A change covers whole ones.
        self._edges = sorted(edges)

    def sample(self, states: int, window: tuple[int, int] | None = None) -> Iterator[State]:
        """About `states` states, moments in order: all there are where that is fewer.

        `window`: the first and the last moment, both included (None: the whole recording).
        """
        first, last = window or (0, self.recording.moments)
        moments: Sequence[int] = range(first, last + 1)
        if len(moments) > max(states // 4, 1):
            moments = sorted(self._random.sample(moments, max(states // 4, 1)))
        for number, moment in enumerate(moments):
            share = states // len(moments) + (number < states % len(moments))
            yield from self.at(moment, max(share, 1))

    def count(self, moment: int) -> int:
        """How many choices a power failure at `moment` has; some may make the same disk."""
        return self._analyse(moment).count()

    def at(self, moment: int, limit: int) -> Iterator[State]:
        """All states of a power failure at `moment` if they are `limit` at most, else so many.

        Of three or more, the first lost all it could and the second nothing.
        """
        found = self._analyse(moment)
        choices = found.every() if found.count() <= limit else found.some(limit, self._random)
        seen = set()
        for pieces, lost in choices:
            key = tuple(piece[2].begun if piece[2] else -1 for piece in pieces)
            if key not in seen:
                seen.add(key)
                yield State(self.recording, moment, [*found.settled, *pieces], lost)

    def _durable(self, moment: int) -> Callable[[Change], bool]:
        def over(what: Change | Flush) -> bool:
            return what.ok and what.ended is not None and what.ended < moment

        flushed = sorted(flush.begun for flush in self.recording.flushes if over(flush))
        if self.device == "drops-flushes":
            flushed = []
        elif self.device == "early-flushes":
            flushed = flushed[:-1]
        covered = flushed[-1] if flushed else -1
        fua = self.device != "ignores-fua"

        def durable(change: Change) -> bool:
            return over(change) and (
                (change.fua and fua) or (change.ended is not None and change.ended < covered)
            )

        return durable

    def _analyse(self, moment: int) -> _Window:
        durable = self._durable(moment)
        of_extent: dict[int, list[Change]] = {}
        replaced: dict[int, int] = {}  # what ended before this moment is no longer there
        for change in self.recording.changes:
            if change.begun >= moment:
                break
            first = bisect_left(self._edges, change.offset)
            last = bisect_left(self._edges, change.offset + change.length)
            lasting = durable(change)
            for extent in range(first, last):
                of_extent.setdefault(extent, []).append(change)
                if lasting:
                    replaced[extent] = max(replaced.get(extent, -1), change.begun)

        def end(change: Change) -> float:
            ended = change.ended
            return ended if ended is not None and ended < moment else math.inf

        settled: list[Piece] = []
        open_: list[tuple[int, int, list[Change | None]]] = []
        for extent, changes in sorted(of_extent.items()):
            offset, length = self._edges[extent], self._edges[extent + 1] - self._edges[extent]
            since = replaced.get(extent, -1)
            left: list[Change | None] = [c for c in changes if end(c) >= since]
            left.sort(key=lambda c: (end(c), c.begun) if c else (0, 0))
            if since < 0:
                left.insert(0, None)
            if len(left) == 1:
                settled.append((offset, length, left[0]))
            else:
                open_.append((offset, length, left))
        volatile = {
            change.begun: change
            for _, _, left in open_
            for change in left
            if change is not None and not durable(change)
        }
        blocks = self.recording.lba_size if self.granularity == "block" else 0
        return _Window(settled, open_, list(volatile.values()), blocks)


@dataclass
class _Window:
    """What is certain and what is open: each open piece holds one of its candidates, oldest first.

    `block`: bytes that can be kept or lost on their own; 0: whole changes only.
    """

    settled: list[Piece]
    open: list[tuple[int, int, list[Change | None]]]
    volatile: list[Change]
    block: int

    def count(self) -> int:
        if not self.block:
            return 1 << len(self.volatile)
        return math.prod(len(left) ** (length // self.block) for _, length, left in self.open)

    def every(self) -> Iterator[tuple[list[Piece], int]]:
        if not self.block:
            for kept in itertools.product((False, True), repeat=len(self.volatile)):
                yield self._of_changes(kept)
            return
        blocks = list(self._blocks())
        for chosen in itertools.product(*(left for _, left in blocks)):
            yield self._of_blocks(blocks, chosen)

    def some(self, limit: int, chance: random.Random) -> Iterator[tuple[list[Piece], int]]:
        many = len(self.volatile)
        if limit > 2:
            yield self._of_changes([False] * many)
            yield self._of_changes([True] * many)
        for _ in range(limit - 2 if limit > 2 else limit):
            how = chance.random()
            if how < 0.3:  # a cache that writes back in order
                until = chance.randrange(many + 1)
                kept = [number < until for number in range(many)]
            else:
                probability = chance.choice((0.05, 0.3, 0.5, 0.7, 0.95))
                kept = [chance.random() < probability for _ in range(many)]
            if not self.block or how > 0.9:
                yield self._of_changes(kept)
            else:
                yield self._torn(kept, chance)

    def _of_changes(self, kept: Sequence[bool]) -> tuple[list[Piece], int]:
        lost = {c.begun for c, keep in zip(self.volatile, kept, strict=True) if not keep}
        pieces = [(offset, length, self._last(left, lost)) for offset, length, left in self.open]
        return pieces, len(lost)

    @staticmethod
    def _last(left: list[Change | None], lost: set[int]) -> Change | None:
        return next(c for c in reversed(left) if c is None or c.begun not in lost)

    def _torn(self, kept: Sequence[bool], chance: random.Random) -> tuple[list[Piece], int]:
        """Each block by itself: as `kept` says, or any of what it may hold."""
        lost = {c.begun for c, keep in zip(self.volatile, kept, strict=True) if not keep}
        torn = chance.choice((0.05, 0.5, 1.0))
        blocks = list(self._blocks())
        chosen = [
            chance.choice(left) if chance.random() < torn else self._last(left, lost)
            for _, left in blocks
        ]
        return self._of_blocks(blocks, chosen)

    def _blocks(self) -> Iterator[tuple[int, list[Change | None]]]:
        for offset, length, left in self.open:
            for start in range(offset, offset + length, self.block):
                yield start, left

    def _of_blocks(
        self, blocks: list[tuple[int, list[Change | None]]], chosen: Sequence[Change | None]
    ) -> tuple[list[Piece], int]:
        there = {change.begun for change in chosen if change is not None}
        lost = sum(change.begun not in there for change in self.volatile)
        return [
            (start, self.block, change) for (start, _), change in zip(blocks, chosen, strict=True)
        ], lost


def _copy_data(source: Path, to: int, size: int) -> None:
    """Copy a sparse file's data, up to `size` bytes."""
    with source.open("rb") as file:
        at = 0
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # nothing but a hole from here on
                return
            end = min(os.lseek(file.fileno(), at, os.SEEK_HOLE), size)
            while at < end:
                at += os.copy_file_range(file.fileno(), to, min(end - at, _COPY), at, at)
