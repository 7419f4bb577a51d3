"""A small disk format that loses nothing it acknowledged: what a database does, on one queue.

A table of `CELLS` cells (one block each, from block 0) is changed by way of a write-ahead journal:
a record (number, cell, value, checksum; two blocks, so that it can be torn) is appended and
flushed, or written with FUA, and then acknowledged. The cell itself is written behind, without a
flush. When the journal is full, a flush makes the cells stable, and the superblock says with FUA
from which record on the journal counts.
"""

from __future__ import annotations

import random
import struct
import time
import zlib
from dataclasses import dataclass, field

from shadowbell.driver import QueuePair

CELLS = 32
SUPERBLOCK = CELLS
JOURNAL = CELLS + 1
RECORDS = 12
"""Room for so many records of two blocks."""
BLOCKS = JOURNAL + 2 * RECORDS

_RECORD = struct.Struct("<QQQ")


def _sealed(payload: bytes, size: int) -> bytes:
    """`payload`, repeated to `size` bytes with a checksum at the end."""
    body = (payload * (size // len(payload) + 1))[: size - 4]
    return body + struct.pack("<I", zlib.crc32(body))


def _opened(data: bytes) -> tuple[int, int, int] | None:
    if zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        return None
    number, cell, value = _RECORD.unpack_from(data)
    return number, cell, value


@dataclass
class Journal:
    """A writer. `acknowledged`: (time in ns of CLOCK_MONOTONIC, cell, value) in order."""

    queue: QueuePair
    lba: int
    fua: bool = False
    flush: bool = True
    acknowledged: list[tuple[int, int, int]] = field(default_factory=list)
    _next: int = 1
    _oldest: int = 1

    def format(self) -> None:
        self.queue.write(1, SUPERBLOCK, _sealed(_RECORD.pack(1, 0, 0), self.lba), fua=True)

    def put(self, cell: int, value: int) -> None:
        """Change a cell; when this returns, it is changed for good."""
        if self._next - self._oldest == RECORDS:
            self._checkpoint()
        place = JOURNAL + self._next % RECORDS * 2
        record = _sealed(_RECORD.pack(self._next, cell, value), 2 * self.lba)
        self.queue.write(1, place, record, fua=self.fua)
        if self.flush and not self.fua:
            self.queue.flush(1)
        self.acknowledged.append((time.monotonic_ns(), cell, value))
        self._next += 1
        self.queue.write(1, cell, _sealed(_RECORD.pack(self._next, cell, value), self.lba))

    def run(self, changes: int, seed: int = 1) -> None:
        """Put random values, each another one."""
        chance = random.Random(seed)
        for number in range(1, changes + 1):
            self.put(chance.randrange(CELLS), number)

    def _checkpoint(self) -> None:
        if self.flush:
            self.queue.flush(1)
        self._oldest = self._next
        data = _sealed(_RECORD.pack(self._oldest, 0, 0), self.lba)
        self.queue.write(1, SUPERBLOCK, data, fua=True)


def recover(disk: bytes | bytearray, lba: int) -> dict[int, int]:
    """The table after a power failure; an empty one if the disk wasn't formatted yet."""

    def blocks(first: int, count: int) -> tuple[int, int, int] | None:
        return _opened(bytes(disk[first * lba : (first + count) * lba]))

    start = blocks(SUPERBLOCK, 1)
    if start is None:
        return {}
    cells: dict[int, int] = {}
    for cell in range(CELLS):
        found = blocks(cell, 1)
        if found is not None:
            cells[found[1]] = found[2]
    number = start[0]
    while (record := blocks(JOURNAL + number % RECORDS * 2, 2)) and record[0] == number:
        cells[record[1]] = record[2]
        number += 1
    return cells


def lost(
    disk: bytes | bytearray, lba: int, acknowledged: list[tuple[int, int, int]], until: int
) -> list[str]:
    """What is missing of all that was acknowledged by `until`. A cell may be newer than that."""
    expected = {cell: value for at, cell, value in acknowledged if at <= until}
    found = recover(disk, lba)
    return [
        f"cell {cell}: {found.get(cell, 0)} instead of {value}"
        for cell, value in expected.items()
        if found.get(cell, 0) < value
    ]
