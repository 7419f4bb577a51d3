"""An engine of byte arrays, and a host that sends one admin command at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

from shadowbell.controller import Controller, Namespace
from shadowbell.dataplane import DmaError, TransferError
from shadowbell.nvme import Status, SubmissionEntry

MEMORY = 2 << 20
ASQ, ACQ, DATA = 0x1000, 0x2000, 0x10000
CC_ENABLE = 0x00460001


class FakeBackend:
    """Counts its flushes, which wait for `gate` and then raise `error`."""

    def __init__(self, size: int = 1 << 20, *, supports_discard: bool = True) -> None:
        self.size = size
        self.supports_discard = supports_discard
        self.discard_zeroes = True
        self.flushes = 0
        self.gate = threading.Event()
        self.gate.set()
        self.error: OSError | None = None

    def flush(self) -> None:
        self.gate.wait(10)
        self.flushes += 1
        if self.error is not None:
            raise self.error


@dataclass(frozen=True)
class FakeEvent:
    kind: str
    qid: int = 0
    cid: int = 0
    status: int = 0
    nsid: int = 0
    lba: int = 0
    phase: int = 0


@dataclass(frozen=True)
class FakeLedger:
    commands: Mapping[str, int] = field(default_factory=dict)
    bytes_read: int = 0
    bytes_written: int = 0
    media_errors: int = 0


class FakeEngine:
    """Records calls in `log`; data goes to and from `memory` at PRP1, without PRP lists."""

    def __init__(self) -> None:
        self.memory = bytearray(MEMORY)
        self.admin: deque[bytes] = deque()
        self.completions: deque[tuple[int, int, int]] = deque()
        self.events: list[FakeEvent] = []
        self.ledgers: list[FakeLedger] = []
        self.log: list[tuple[object, ...]] = []
        self.refuse_admin = False

    def open_admin(self, asq: int, asq_entries: int, acq: int, acq_entries: int) -> None:
        if self.refuse_admin:
            raise ValueError("refused")
        self.log.append(("open_admin", asq, asq_entries, acq, acq_entries))

    def fetch_admin(self) -> bytes | None:
        return self.admin.popleft() if self.admin else None

    def complete_admin(self, cid: int, status: int, dw0: int = 0) -> None:
        self.completions.append((cid, status, dw0))

    def write_data(self, sqe: bytes, data: bytes) -> None:
        at = self._data(sqe, len(data))
        self.memory[at : at + len(data)] = data

    def read_data(self, sqe: bytes, length: int) -> bytes:
        at = self._data(sqe, length)
        return bytes(self.memory[at : at + length])

    def _data(self, sqe: bytes, length: int) -> int:
        at = SubmissionEntry.parse(sqe).prp1
        if at + length > MEMORY:
            raise TransferError(Status.DATA_TRANSFER_ERROR)
        return at

    def create_cq(self, qid: int, iova: int, entries: int, vector: int | None) -> None:
        self.log.append(("create_cq", qid, iova, entries, vector))

    def create_sq(self, qid: int, iova: int, entries: int, cqid: int) -> None:
        self.log.append(("create_sq", qid, iova, entries, cqid))

    def delete_sq(self, qid: int) -> None:
        self.log.append(("delete_sq", qid))

    def delete_cq(self, qid: int) -> None:
        self.log.append(("delete_cq", qid))

    def reset(self) -> None:
        self.admin.clear()
        self.completions.clear()
        self.log.append(("reset",))

    def set_shadow(self, shadow: int, eventidx: int) -> None:
        if max(shadow, eventidx) >= MEMORY:
            raise DmaError(f"{shadow:#x} is not mapped")
        self.log.append(("set_shadow", shadow, eventidx))

    def set_write_cache(self, enabled: bool) -> None:
        self.log.append(("set_write_cache", enabled))

    def set_coalescing(self, entries: int, microseconds: int, exempt: Container[int]) -> None:
        self.log.append(("set_coalescing", entries, microseconds, exempt))

    def attach_namespace(
        self, nsid: int, backend: FakeBackend, lba_shift: int, read_only: bool
    ) -> None:
        self.log.append(("attach_namespace", nsid, lba_shift, read_only))

    def detach_namespace(self, nsid: int) -> None:
        self.log.append(("detach_namespace", nsid))

    def resize_namespace(self, nsid: int, size: int) -> None:
        self.log.append(("resize_namespace", nsid, size))

    def protect_namespace(self, nsid: int, protected: bool) -> None:
        self.log.append(("protect_namespace", nsid, protected))

    def limit_namespace(self, nsid: int, iops: float, bps: float, burst: float) -> None:
        self.log.append(("limit_namespace", nsid, iops, bps, burst))

    def take_events(self) -> Sequence[FakeEvent]:
        taken, self.events = self.events, []
        return taken

    def ledger(self) -> Sequence[FakeLedger]:
        return self.ledgers


@dataclass(frozen=True)
class Completion:
    cid: int
    status: int
    """SCT << 8 | SC."""
    dw0: int
    dnr: bool


class Host:
    """A host and its controller: namespaces 1 (512-byte blocks) and 3 (4096, read-only)."""

    def __init__(self, *, dbbuf: bool = True) -> None:
        self.engine = FakeEngine()
        self.backend = FakeBackend()
        self.controller = Controller(
            self.engine,
            serial="SB0001",
            model="shadowbell NVMe",
            namespaces=[
                Namespace(1, self.backend, serial="SB0001"),
                Namespace(3, FakeBackend(), serial="SB0001", lba=4096, read_only=True),
            ],
            max_queues=8,
            dbbuf=dbbuf,
            vectors=9,
        )
        self._cid = 0

    def read32(self, offset: int) -> int:
        return int.from_bytes(self.controller.read_register(offset, 4), "little")

    def write32(self, offset: int, value: int) -> None:
        self.controller.write_register(offset, value.to_bytes(4, "little"))

    def write64(self, offset: int, value: int) -> None:
        self.controller.write_register(offset, value.to_bytes(8, "little"))

    def enable(self, cc: int = CC_ENABLE) -> None:
        self.write32(0x24, 0x001F001F)
        self.write64(0x28, ASQ)
        self.write64(0x30, ACQ)
        self.write32(0x14, cc)

    def send(self, opcode: int, **fields: int) -> int:
        """Put a command into the admin queue and let the controller run; its identifier."""
        self._cid += 1
        fields.setdefault("prp1", DATA)
        sqe = SubmissionEntry(opcode=opcode, cid=self._cid, **fields)
        self.engine.admin.append(bytes(sqe))
        self.controller.process()
        return self._cid

    def completion(self) -> Completion | None:
        """The next completion, if there is one."""
        if not self.engine.completions:
            return None
        cid, status, dw0 = self.engine.completions.popleft()
        return Completion(cid, status & 0x7FF, dw0, bool(status & 1 << 14))

    def do(self, opcode: int, **fields: int) -> Completion:
        """Send a command and take its completion."""
        cid = self.send(opcode, **fields)
        done = self.completion()
        assert done is not None
        assert done.cid == cid
        return done

    def data(self, length: int, at: int = DATA) -> bytes:
        return bytes(self.engine.memory[at : at + length])

    def read(self, opcode: int, length: int = 4096, **fields: int) -> bytes:
        """Send a command that must succeed and return the data it brought."""
        self.engine.memory[DATA : DATA + length] = b"\xee" * length
        done = self.do(opcode, **fields)
        assert done.status == 0, Status(done.status)
        return self.data(length)
