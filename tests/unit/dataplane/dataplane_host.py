"""A host in the same process: memory in a memfd, a socket for doorbells, queues that we poke.

It knows the wire and the queue layout only, and nothing of how the data plane works.
"""

import contextlib
import fcntl
import mmap
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from shadowbell.block import Backend, open_backend
from shadowbell.dataplane import Engine, IOThread, Pins, live_objects
from shadowbell.dataplane.ledger import QueueLedger
from shadowbell.dataplane.notices import Event

PAGE = 4096
MIB = 1 << 20
NO_REPLY = 0x10
DNR = 0x4000

FLUSH, WRITE, READ, COMPARE, WRITE_ZEROES, DSM, VERIFY = 0, 1, 2, 5, 8, 9, 0xC
FUA, DEAC = 1 << 30, 1 << 25


def sqe(
    opcode: int,
    *,
    cid: int = 0,
    nsid: int = 1,
    prp1: int = 0,
    prp2: int = 0,
    lba: int = 0,
    blocks: int = 1,
    flags: int = 0,
    cdw12: int = 0,
    cdw11: int | None = None,
    cdw10: int | None = None,
) -> bytes:
    """A 64-byte command; ``flags`` is its second byte, FUSE and PSDT."""
    low = lba & 0xFFFFFFFF if cdw10 is None else cdw10
    high = lba >> 32 if cdw11 is None else cdw11
    return struct.pack(
        "<BBHI16xQQ6I", opcode, flags, cid, nsid, prp1, prp2, low, high,
        (blocks - 1) & 0xFFFF | cdw12, 0, 0, 0,
    )  # fmt: skip


class Completion(NamedTuple):
    cid: int
    status: int  # with Do Not Retry, without the phase
    sq_head: int
    sqid: int
    dw0: int

    @property
    def code(self) -> int:
        return self.status & ~DNR


def wait_until(
    true: Callable[[], Any], seconds: float = 5.0, what: str = "it didn't happen"
) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.0002)


class Queue:
    """A queue pair as the host sees it; several submission queues may share ``cq``."""

    def __init__(self, host: "Host", qid: int, sq: int, cq: int, entries: int, cq_entries: int):
        self.host, self.qid, self.sq, self.cq = host, qid, sq, cq
        self.entries, self.cq_entries = entries, cq_entries
        self.tail = self.head = 0
        self.phase = 1
        self.bells = 0
        self.next_cid = 0
        self.stores_shadow = True

    def put(self, command: bytes) -> None:
        """Write a command into the queue, ring nothing."""
        self.host.write(self.sq + 64 * self.tail, command)
        self.tail = (self.tail + 1) % self.entries

    def ring(self, old: int) -> None:
        self.host.update(self, 2 * self.qid, old, self.tail)

    def submit(self, *commands: bytes) -> None:
        old = self.tail
        for command in commands:
            self.put(command)
        self.ring(old)

    def peek(self) -> Completion | None:
        raw = self.host.read(self.cq + 16 * self.head, 16)
        dw0, _, sq_head, sqid, cid, status = struct.unpack("<IIHHHH", raw)
        if status & 1 != self.phase:
            return None
        return Completion(cid, status >> 1, sq_head, sqid, dw0)

    def take(self, ring: bool = True) -> Completion | None:
        completion = self.peek()
        if completion is not None:
            self.head += 1
            if self.head == self.cq_entries:
                self.head, self.phase = 0, self.phase ^ 1
            if ring:
                self.ring_head((self.head - 1) % self.cq_entries)
        return completion

    def ring_head(self, old: int) -> None:
        self.host.update(self, 2 * self.qid + 1, old, self.head)

    def wait(self, seconds: float = 5.0) -> Completion:
        end = time.monotonic() + seconds
        while (completion := self.take()) is None:
            assert time.monotonic() < end, f"no completion in queue {self.qid}"
            time.sleep(0.00005)
        return completion

    def run(self, command: bytes) -> Completion:
        self.submit(command)
        return self.wait()

    def drain(self, count: int) -> list[Completion]:
        return [self.wait() for _ in range(count)]


def sealed(size: int) -> int:
    """A file in memory that can't shrink, as QEMU's."""
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


class Host:
    """One engine and its client; IO virtual addresses from ``base`` are the memfd's bytes."""

    def __init__(
        self,
        iothreads: list[IOThread],
        *,
        size: int = 16 * MIB,
        base: int = 0,
        mapped: bool = False,
        max_queues: int = 16,
        channel: bool = True,
        map_all: bool = True,
        placement: list[int] | None = None,
        pins: Pins | None = None,
    ) -> None:
        self.engine = Engine(
            iothreads, max_queues=max_queues, mapped=mapped, placement=placement, pins=pins
        )
        self.fd = sealed(size) if pins is not None else os.memfd_create("host")
        os.ftruncate(self.fd, size)
        self.size, self.base = size, base
        self.memory = mmap.mmap(self.fd, size)
        self.doorbells = mmap.mmap(self.engine.doorbell_fd, PAGE, offset=PAGE) if mapped else None
        if map_all:
            self.engine.dma_map(base, size, self.fd, 0, 3)
        self.used = PAGE
        self.socket, self.served = socket.socketpair()
        self.messages = 0
        self.shadow: tuple[int, int] | None = None
        if channel:
            self.engine.open_channel(self.served.fileno())

    # --- memory

    def take(self, size: int, align: int = PAGE) -> int:
        """Memory that nobody has used, by IO virtual address."""
        self.used = -(-self.used // align) * align
        where = self.base + self.used
        self.used += size
        assert self.used <= self.size
        return where

    def read(self, iova: int, length: int) -> bytes:
        return self.memory[iova - self.base : iova - self.base + length]

    def write(self, iova: int, data: bytes) -> None:
        self.memory[iova - self.base : iova - self.base + len(data)] = data

    def word(self, iova: int) -> int:
        return int.from_bytes(self.read(iova, 4), "little")

    def store(self, iova: int, value: int) -> None:
        self.write(iova, value.to_bytes(4, "little"))

    def prps(self, address: int, length: int) -> tuple[int, int]:
        """PRP1 and PRP2 of a contiguous buffer; lists go into fresh memory."""
        first = PAGE - address % PAGE
        pages = list(range(address - address % PAGE + PAGE, address + length, PAGE))
        if length <= first:
            return address, 0
        if len(pages) == 1:
            return address, pages[0]
        return address, self.list_of(pages)

    def list_of(self, pages: list[int]) -> int:
        chunks = [pages[i : i + 511] for i in range(0, len(pages), 511)]
        if len(chunks) > 1 and len(chunks[-1]) == 1:
            chunks[-2].append(chunks.pop()[0])
        following = 0
        for chunk in reversed(chunks):
            where = self.take(PAGE)
            tail = [] if len(chunk) == 512 or not following else [following]
            self.write(where, struct.pack(f"<{len(chunk) + len(tail)}Q", *chunk, *tail))
            following = where
        return following

    # --- doorbells

    def message(self, offset: int, value: int, flags: int = NO_REPLY) -> bytes:
        self.messages += 1
        return struct.pack(
            "<HHIIIQIII", self.messages & 0xFFFF, 10, 36, flags, 0, 0x1000 + offset, 0, 4, value
        )

    def bell(self, slot: int, value: int, flags: int = NO_REPLY) -> None:
        self.socket.send(self.message(4 * slot, value, flags))

    def update(self, queue: Queue, slot: int, old: int, new: int) -> None:
        """Linux' nvme_dbbuf_update_and_check_event where there is a shadow, else the register."""
        if self.doorbells is not None:
            self.doorbells[4 * slot : 4 * slot + 4] = new.to_bytes(4, "little")
            return
        if self.shadow is not None and queue.stores_shadow:
            self.store(self.shadow[0] + 4 * slot, new)
            eventidx = self.word(self.shadow[1] + 4 * slot)
            if not (new - eventidx - 1) & 0xFFFF < (new - old) & 0xFFFF:
                return
        queue.bells += 1
        self.bell(slot, new)

    def use_shadow(self) -> tuple[int, int]:
        self.shadow = (self.take(PAGE), self.take(PAGE))
        self.engine.set_shadow(*self.shadow)
        return self.shadow

    # --- queues

    def queue(
        self,
        qid: int,
        entries: int = 64,
        *,
        cq_entries: int | None = None,
        vector: int | None = None,
    ) -> Queue:
        cq_entries = cq_entries or entries
        queue = Queue(
            self, qid, self.take(64 * entries), self.take(16 * cq_entries), entries, cq_entries
        )
        self.write(queue.cq, bytes(16 * cq_entries))
        self.engine.create_cq(qid, queue.cq, cq_entries, vector)
        self.engine.create_sq(qid, queue.sq, entries, qid)
        return queue

    def sharing(self, qid: int, other: Queue, entries: int = 64) -> Queue:
        """A further submission queue on ``other``'s completion queue; take from ``other``."""
        queue = Queue(self, qid, self.take(64 * entries), other.cq, entries, other.cq_entries)
        self.engine.create_sq(qid, queue.sq, entries, other.qid)
        return queue

    def admin(self, entries: int = 32, cq_entries: int = 32) -> Queue:
        queue = Queue(
            self, 0, self.take(64 * entries), self.take(16 * cq_entries), entries, cq_entries
        )
        self.engine.open_admin(queue.sq, entries, queue.cq, cq_entries)
        return queue

    # --- the control plane

    def notified(self, seconds: float = 5.0) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(self.engine.notify_fd, selectors.EVENT_READ)
            return bool(selector.select(seconds))

    def events(self, kind: str | None = None, seconds: float = 5.0) -> list[Event]:
        """Wait for events (of a kind) and take them."""
        found: list[Event] = []

        def arrived() -> bool:
            found.extend(e for e in self.engine.take_events() if kind in (None, e.kind))
            return bool(found)

        wait_until(arrived, seconds, f"no event {kind}")
        return found

    def next_message(self, seconds: float = 5.0) -> tuple[bytes, list[int]]:
        found: list[tuple[bytes, list[int]]] = []

        def arrived() -> bool:
            message = self.engine.next_message()
            if message is not None:
                found.append(message)
            return bool(found)

        wait_until(arrived, seconds, "no message")
        return found[0]

    def ledger(self, qid: int) -> QueueLedger:
        return next(entry for entry in self.engine.ledger() if entry.qid == qid)

    def attach(self, backend: Backend, nsid: int = 1, lba: int = 512) -> Backend:
        self.engine.attach_namespace(nsid, backend, lba.bit_length() - 1, backend.read_only)
        return backend

    def attach_memory(self, size: int = 8 * MIB, nsid: int = 1, lba: int = 512) -> Backend:
        backend = open_backend("memory", path=None, size=size, lba=lba, read_only=False)
        return self.attach(backend, nsid, lba)

    def close(self) -> None:
        self.engine.close()
        if self.doorbells is not None:
            self.doorbells.close()
        self.memory.close()
        for end in (self.socket, self.served):
            end.close()
        os.close(self.fd)


@contextlib.contextmanager
def running(
    count: int = 1,
    *,
    poll_max_us: int | Literal["busy"] = 1024,
    sqpoll: bool = False,
    iopoll: bool = False,
) -> Iterator[list[IOThread]]:
    threads = [
        IOThread(i, poll_max_us=poll_max_us, sqpoll=sqpoll, iopoll=iopoll) for i in range(count)
    ]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        for thread in threads:
            thread.stop()


def held() -> dict[str, int]:
    """What closed engines must have given back."""
    return {k: live_objects().get(k, 0) for k in ("queues", "mappings", "channels", "pinned")}


def flush_all(queue: Queue, count: int, batch: int) -> None:
    """Submit in batches and take the completions in between; every command comes back once."""
    left, cid = count, 0
    while left:
        n = min(batch, left)
        queue.submit(*(sqe(FLUSH, cid=(cid + i) & 0xFFFF) for i in range(n)))
        done = queue.drain(n)
        assert [c.cid for c in done] == [(cid + i) & 0xFFFF for i in range(n)]
        assert not any(c.status for c in done)
        assert done[-1].sq_head == queue.tail
        left, cid = left - n, cid + n
