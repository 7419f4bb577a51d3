"""Commands on a queue: submit, wait, and the NVM command set's operations with their data."""

import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from shadowbell.driver import pointers
from shadowbell.driver.hostqueue import CompletionRing, DeviceGone, SubmissionRing
from shadowbell.driver.memory import PAGE, Arena, Buffer
from shadowbell.nvme import IoOpcode, Psdt, ReadWrite, Status, SubmissionEntry
from shadowbell.nvme.status import DO_NOT_RETRY, describe
from shadowbell.nvme.transfer import DsmAttributes

LOOK: Final = 0.05
"""Seconds between looks whether the queue was killed while its command is waited for."""
UNREAD: Final = 0xA5
"""What a read's buffer holds before: bytes that the device never transferred show as these."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion queue entry. ``status_field`` has 15 bits: DNR, M, CRD, SCT, SC."""

    sqid: int
    cid: int
    status_field: int
    dw0: int
    dw1: int

    @property
    def status(self) -> int:
        """SCT << 8 | SC, to compare with `Status`."""
        return self.status_field & 0x7FF

    @property
    def dnr(self) -> bool:
        """Do Not Retry."""
        return bool(self.status_field & DO_NOT_RETRY)


class CommandError(Exception):
    """The device completed a command with an error status."""

    def __init__(self, completion: Completion, what: str) -> None:
        super().__init__(f"{what}: {describe(completion.status)}")
        self.completion = completion
        self.status = completion.status


class CompletionQueue:
    """A completion queue with what was reaped from it and not yet asked for."""

    def __init__(self, ring: CompletionRing, memory: Buffer, vector: int | None) -> None:
        self.ring = ring
        self.memory = memory
        self.vector = vector
        self.done: dict[tuple[int, int], Completion] = {}

    @property
    def qid(self) -> int:
        """Queue identifier."""
        return self.ring.qid

    def reap(self) -> None:
        """Take what has completed."""
        for entry in self.ring.reap():
            self.done[entry[:2]] = Completion(*entry)


class QueuePair:
    """A submission queue and the completion queue it uses (which others may share).

    ``lba_size`` tells the block size of a namespace. One thread at a time. Operations raise
    CommandError for an error status, TimeoutError when the device doesn't complete,
    ProtocolError when it completes nonsense, DeviceGone when the connection or queue is gone.
    """

    def __init__(
        self,
        ring: SubmissionRing,
        completions: CompletionQueue,
        memory: Buffer,
        arena: Arena,
        lba_size: Callable[[int], int],
    ) -> None:
        self.ring = ring
        self.completions = completions
        self.memory = memory
        self.arena = arena
        self.lba_size = lba_size
        self.sgl = False
        """Describe data by SGLs instead of PRPs."""
        self.orphans: list[Buffer] = []
        """Memory that a command which never completed may still use; freed with the queue."""
        self.loads: set[object] = set()
        """Loads that run on it, or have yet to give their memory back."""

    @property
    def qid(self) -> int:
        """Queue identifier."""
        return self.ring.qid

    # --- commands

    def submit(self, sqe: SubmissionEntry | bytes, *, ring: bool = True) -> int:
        """Submit a command and return its identifier; ``ring=False`` leaves the doorbell."""
        cid = self.ring.push(bytes(sqe))
        if ring:
            self.ring.ring()
        return cid

    def poll(self) -> list[Completion]:
        """Completions of this queue's commands that are there now."""
        self.completions.reap()
        done = self.completions.done
        mine = [key for key in done if key[0] == self.qid]
        return [done.pop(key) for key in mine]

    def wait(self, cid: int, timeout: float = 10.0) -> Completion:
        """Wait for one command; completions of others are kept for who asks for them."""
        end = time.monotonic() + timeout
        while True:
            self.completions.reap()
            completion = self.completions.done.pop((self.qid, cid), None)
            if completion is not None:
                return completion
            if self.ring.dead:
                raise DeviceGone(f"queue {self.qid} is gone")
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"command {cid} of queue {self.qid} doesn't complete")
            self.completions.ring.wait(min(left, LOOK))

    def execute(
        self, sqe: SubmissionEntry, *, check: bool = True, timeout: float = 10.0
    ) -> Completion:
        """Submit a command and wait for it; ``check=False`` returns error statuses too."""
        completion = self.wait(self.submit(sqe), timeout)
        if check and completion.status:
            raise CommandError(completion, f"opcode {sqe.opcode:02X}h on queue {self.qid}")
        return completion

    def point(self, sqe: SubmissionEntry, iova: int, length: int) -> Buffer | None:
        """Set the Data Pointer to contiguous memory; returns the list's memory, to be freed."""
        if self.sgl:
            pair = pointers.inline_pair(pointers.encode_sgl([(iova, length)], 0))
            sqe.prp1, sqe.prp2 = pair
            sqe.flags |= Psdt.SGL_MPTR_CONTIGUOUS << 6
            return None
        pages = pointers.prp_pages(iova, length)
        sqe.prp1 = pages[0]
        if len(pages) <= 2:
            sqe.prp2 = pages[1] if len(pages) == 2 else 0
            return None
        table = self.arena.allocate(pointers.list_pages(len(pages) - 1) * PAGE, fill=None)
        encoded = pointers.encode_prp_list(pages[1:], table.iova)
        table.view[: len(encoded)] = encoded
        sqe.prp2 = table.iova
        return table

    def transfer(
        self,
        sqe: SubmissionEntry,
        data: bytes | bytearray | memoryview = b"",
        length: int = 0,
        *,
        check: bool = True,
        timeout: float = 10.0,
        offset: int = 0,
    ) -> tuple[Completion, bytes]:
        """Execute a command with ``data`` to the device, or ``length`` bytes from it.

        ``offset``: where in its first page the data starts. Returns (completion, data read).
        """
        size = len(data) or length
        if size == 0:
            return self.execute(sqe, check=check, timeout=timeout), b""
        buffer = self.arena.allocate(offset + size, fill=None if data else UNREAD)
        held = [buffer]
        try:
            if data:
                buffer.view[offset : offset + size] = data
            table = self.point(sqe, buffer.iova + offset, size)
            if table is not None:
                held.append(table)
            completion = self.execute(sqe, check=check, timeout=timeout)
            result = bytes(buffer.view[offset : offset + length])
        except (CommandError, BlockingIOError):
            self._free(held)
            raise
        except BaseException:
            self.orphans += held  # the device may still write there
            raise
        self._free(held)
        return completion, result

    @staticmethod
    def _free(buffers: list[Buffer]) -> None:
        for buffer in buffers:
            buffer.free()

    # --- the NVM command set

    def _block_command(
        self, opcode: IoOpcode, nsid: int, lba: int, blocks: int, cdw12: int = 0
    ) -> SubmissionEntry:
        if not 1 <= blocks <= 65536:
            raise ValueError("a command covers 1 to 65536 blocks")
        return SubmissionEntry(
            opcode=opcode,
            nsid=nsid,
            cdw10=lba & 0xFFFFFFFF,
            cdw11=lba >> 32,
            cdw12=(blocks - 1) | cdw12,
        )

    def read(self, nsid: int, lba: int, blocks: int, *, offset: int = 0) -> bytes:
        """Read ``blocks`` logical blocks; ``offset`` bytes into the first memory page."""
        sqe = self._block_command(IoOpcode.READ, nsid, lba, blocks)
        return self.transfer(sqe, length=blocks * self.lba_size(nsid), offset=offset)[1]

    def write(
        self,
        nsid: int,
        lba: int,
        data: bytes | bytearray | memoryview,
        *,
        fua: bool = False,
        offset: int = 0,
    ) -> None:
        """Write whole blocks; ``fua`` forces them to the medium."""
        bits = ReadWrite.FUA if fua else 0
        blocks = self._whole(nsid, data)
        sqe = self._block_command(IoOpcode.WRITE, nsid, lba, blocks, bits)
        self.transfer(sqe, data, offset=offset)

    def compare(self, nsid: int, lba: int, data: bytes | bytearray | memoryview) -> bool:
        """Whether the namespace holds ``data`` at ``lba``."""
        sqe = self._block_command(IoOpcode.COMPARE, nsid, lba, self._whole(nsid, data))
        completion, _ = self.transfer(sqe, data, check=False)
        if completion.status in (Status.SUCCESSFUL_COMPLETION, Status.COMPARE_FAILURE):
            return completion.status == Status.SUCCESSFUL_COMPLETION
        raise CommandError(completion, "Compare")

    def flush(self, nsid: int) -> None:
        """Make completed writes durable."""
        self.execute(SubmissionEntry(opcode=IoOpcode.FLUSH, nsid=nsid), timeout=60)

    def write_zeroes(
        self, nsid: int, lba: int, blocks: int, *, deallocate: bool = False, fua: bool = False
    ) -> None:
        """Set blocks to zero, without data."""
        bits = (ReadWrite.DEAC if deallocate else 0) | (ReadWrite.FUA if fua else 0)
        self.execute(self._block_command(IoOpcode.WRITE_ZEROES, nsid, lba, blocks, bits))

    def verify(self, nsid: int, lba: int, blocks: int) -> None:
        """Have the device read the blocks without transferring them."""
        self.execute(self._block_command(IoOpcode.VERIFY, nsid, lba, blocks))

    def dataset_management(
        self, nsid: int, ranges: Sequence[tuple[int, int]], *, deallocate: bool = True
    ) -> None:
        """Dataset Management over 1 to 256 ranges of (lba, blocks)."""
        data = b"".join(struct.pack("<IIQ", 0, blocks, lba) for lba, blocks in ranges)
        sqe = SubmissionEntry(
            opcode=IoOpcode.DATASET_MANAGEMENT,
            nsid=nsid,
            cdw10=len(ranges) - 1,
            cdw11=DsmAttributes.AD if deallocate else 0,
        )
        self.transfer(sqe, data)

    def _whole(self, nsid: int, data: bytes | bytearray | memoryview) -> int:
        size = self.lba_size(nsid)
        if not data or len(data) % size:
            raise ValueError(f"{len(data)} bytes are no whole blocks of {size}")
        return len(data) // size
