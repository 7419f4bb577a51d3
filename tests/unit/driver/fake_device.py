"""A toy NVMe device over plain memory: enough to run the driver's rings without a server."""

import struct
import threading
import time
from collections.abc import Callable

from shadowbell.driver.hostqueue import CompletionRing, SubmissionRing
from shadowbell.driver.memory import PAGE, Arena

LBA = 512


class FakeDevice:
    """One queue pair with mapped doorbells; a thread executes reads and writes on ``blocks``.

    ``spoil(opcode, lba, completion)`` may return another 16-byte completion, or b"" for none;
    ``drop_write(lba)`` says whether to acknowledge a write without doing it. ``interrupt()`` is
    called after each completion.
    """

    def __init__(self, entries: int = 8, blocks: int = 256, irq: int = -1, qid: int = 1) -> None:
        self.qid = qid
        self.arena = Arena(8 << 20)
        self.disk = bytearray(blocks * LBA)
        self.entries = entries
        self.sq = self.arena.allocate(entries * 64)
        self.cq = self.arena.allocate(entries * 16)
        self.page = self.arena.allocate(PAGE)
        self.completions = CompletionRing(qid, entries, self.cq.address, -1, 0, irq)
        self.ring = SubmissionRing(qid, entries, self.sq.address, -1, 0, self.completions)
        self.ring.map(self.page.address)
        self.completions.map(self.page.address + 4)
        self.spoil: Callable[[int, int, bytes], bytes] = lambda opcode, lba, entry: entry
        self.drop_write: Callable[[int], bool] = lambda lba: False
        self.interrupt: Callable[[], object] = lambda: None
        self._head = 0
        self._posted = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "FakeDevice":
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            tail, head = struct.unpack_from("<II", self.page.view)
            while self._head != tail and self._room(head):
                self._execute(self._head)
            time.sleep(0)

    def _room(self, head: int) -> bool:
        return (self._posted + 1) % self.entries != head

    def _execute(self, slot: int) -> None:
        sqe = bytes(self.sq.view[slot * 64 : slot * 64 + 64])
        opcode, _, cid = struct.unpack_from("<BBH", sqe)
        prp1 = struct.unpack_from("<Q", sqe, 24)[0]
        lba, nlb = struct.unpack_from("<QH", sqe, 40)
        length = (nlb + 1) * LBA
        data = self.arena.view[prp1 - self.arena.iova :][:length]
        place = slice(lba * LBA, lba * LBA + length)
        if opcode == 1 and not self.drop_write(lba):
            self.disk[place] = data
        elif opcode == 2:
            data[:] = self.disk[place]
        self._head = (self._head + 1) % self.entries
        entry = struct.pack("<IIHHHH", 0, 0, self._head, self.qid, cid, self._phase)
        entry = self.spoil(opcode, lba, entry)
        if entry:
            at = self._posted * 16
            self.cq.view[at : at + 12] = entry[:12]
            self.cq.view[at + 12 : at + 16] = entry[12:]
            self._advance()
            self.interrupt()

    @property
    def _phase(self) -> int:
        return self._lap & 1 ^ 1

    _lap = 0

    def _advance(self) -> None:
        self._posted += 1
        if self._posted == self.entries:
            self._posted = 0
            self._lap += 1
