"""The log of a recorded namespace.

A header of 32 bytes: "SBRECORD", version 1 (4 bytes), logical block size (4), size of the disk
(8), 8 reserved. Then entries of 40 bytes, little-endian: time (8, ns of CLOCK_MONOTONIC), number
of the request (8), offset (8), length (8), kind (1), flags (1), reserved (2), result (4, signed).
The kind is 1 write, 2 flush, 3 write zeroes, 4 discard, plus 80h when the request is over; its
number is then that of the entry it began with. A write's data follow the entry that begins it.
Flag 1 is FUA.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

from shadowbell.errors import UserError

_HEADER = struct.Struct("<8sIIQ8x")
_ENTRY = struct.Struct("<QQQQBBHi")
_WRITE, _FLUSH, _ZERO, _DISCARD = 1, 2, 3, 4
_ENDED = 0x80
_FUA = 1


class RecordingError(UserError):
    """The file is no recording, or not one that makes sense."""


@dataclass(slots=True)
class Change:
    """Bytes `offset` to `offset + length` of the disk were written or, without `data_at`, zeroed.

    `begun` and `ended` count the log's entries; None: it wasn't over when the log ended. `data_at`
    is where in the log the data are. `ok`: it completed without an error.
    """

    begun: int
    offset: int
    length: int
    fua: bool
    data_at: int | None
    ended: int | None = None
    ok: bool = False


@dataclass(slots=True)
class Flush:
    """A flush; fields as of `Change`."""

    begun: int
    ended: int | None = None
    ok: bool = False


@dataclass
class Recording:
    """A log, read. `size` and `lba_size` are in bytes; `times` has the entries' times in ns."""

    size: int
    lba_size: int
    log: mmap.mmap | bytes
    changes: list[Change] = field(default_factory=list)
    flushes: list[Flush] = field(default_factory=list)
    times: list[int] = field(default_factory=list)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Recording:
        """Read the log at `path`; one that ends within an entry ends before it. RecordingError."""
        try:
            with Path(path).open("rb") as file:
                log = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise RecordingError(f"can't read the recording {path}: {error}") from error
        try:
            return cls.read(log)
        except RecordingError as error:
            raise RecordingError(f"{path}: {error}") from None

    @classmethod
    def read(cls, log: mmap.mmap | bytes) -> Recording:
        """Read a log from memory. RecordingError."""
        if len(log) < _HEADER.size:
            raise RecordingError("no recording: it is too short")
        magic, version, lba_size, size = _HEADER.unpack_from(log)
        if magic != b"SBRECORD" or version != 1:
            raise RecordingError("no recording that this version can read")
        self = cls(size, lba_size, log)
        running: dict[int, Change | Flush] = {}
        at = _HEADER.size
        while at + _ENTRY.size <= len(log):
            time, number, offset, length, kind, flags, _, result = _ENTRY.unpack_from(log, at)
            at += _ENTRY.size
            moment = len(self.times)
            operation = kind & ~_ENDED
            if operation not in (_WRITE, _FLUSH, _ZERO, _DISCARD):
                raise RecordingError(f"not whole: entry {moment} is of unknown kind {kind:#x}")
            if kind & _ENDED:
                if number not in running:
                    raise RecordingError(f"not whole: entry {moment} ends what didn't begin")
                over = running.pop(number)
                over.ended, over.ok = moment, result >= 0
            elif operation == _FLUSH:
                running[number] = flush = Flush(moment)
                self.flushes.append(flush)
            else:
                if offset + length > size:
                    raise RecordingError(f"not whole: entry {moment} is beyond the disk")
                data_at = at if operation == _WRITE else None
                if operation == _WRITE:
                    at += length
                    if at > len(log):
                        break
                change = Change(moment, offset, length, bool(flags & _FUA), data_at)
                running[number] = change
                self.changes.append(change)
            self.times.append(time)
        return self

    @property
    def moments(self) -> int:
        """Power can fail after 0 to `moments` entries."""
        return len(self.times)

    def moment_at(self, time: int) -> int:
        """How many entries there were by `time` (ns of CLOCK_MONOTONIC)."""
        return sum(each <= time for each in self.times)

    def data(self, change: Change, offset: int, length: int) -> bytes:
        """The bytes that `change` put at `offset` of the disk."""
        if change.data_at is None:
            return bytes(length)
        start = change.data_at + offset - change.offset
        return self.log[start : start + length]
