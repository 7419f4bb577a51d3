"""Submission and completion queue entries (Base 2.0, sections 3.3.3.1 and 3.3.3.2)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

SQE_SIZE = 64
CQE_SIZE = 16
NSID_ALL = 0xFFFFFFFF
"""The broadcast namespace identifier."""

_SQE = struct.Struct("<BBHIIIQQQIIIIII")
_CQE = struct.Struct("<IIHHHH")


class Psdt(IntEnum):
    """PRP or SGL for Data Transfer: bits 7:6 of byte 1."""

    PRP = 0b00
    SGL_MPTR_CONTIGUOUS = 0b01
    SGL_MPTR_SEGMENT = 0b10


@dataclass(slots=True)
class SubmissionEntry:
    """A 64-byte command. `prp1` and `prp2` are the Data Pointer; an SGL descriptor fills both."""

    opcode: int = 0
    flags: int = 0
    """FUSE in bits 1:0, PSDT in bits 7:6."""
    cid: int = 0
    nsid: int = 0
    cdw2: int = 0
    cdw3: int = 0
    mptr: int = 0
    prp1: int = 0
    prp2: int = 0
    cdw10: int = 0
    cdw11: int = 0
    cdw12: int = 0
    cdw13: int = 0
    cdw14: int = 0
    cdw15: int = 0

    @classmethod
    def parse(cls, data: bytes) -> SubmissionEntry:
        """Read the 64 bytes of a submission queue entry; struct.error for another length."""
        return cls(*_SQE.unpack(data))

    def __bytes__(self) -> bytes:
        return _SQE.pack(
            self.opcode,
            self.flags,
            self.cid,
            self.nsid,
            self.cdw2,
            self.cdw3,
            self.mptr,
            self.prp1,
            self.prp2,
            self.cdw10,
            self.cdw11,
            self.cdw12,
            self.cdw13,
            self.cdw14,
            self.cdw15,
        )

    @property
    def fuse(self) -> int:
        """Fused Operation."""
        return self.flags & 0b11

    @property
    def psdt(self) -> int:
        """PRP or SGL for Data Transfer, see `Psdt`."""
        return self.flags >> 6


@dataclass(slots=True)
class CompletionEntry:
    """A 16-byte completion. `status_field` is the last word: status << 1 | Phase Tag."""

    dw0: int = 0
    dw1: int = 0
    sqhd: int = 0
    sqid: int = 0
    cid: int = 0
    status_field: int = 0

    @classmethod
    def parse(cls, data: bytes) -> CompletionEntry:
        """Read the 16 bytes of a completion queue entry; struct.error for another length."""
        return cls(*_CQE.unpack(data))

    def __bytes__(self) -> bytes:
        return _CQE.pack(self.dw0, self.dw1, self.sqhd, self.sqid, self.cid, self.status_field)

    @property
    def phase(self) -> int:
        """Phase Tag."""
        return self.status_field & 1

    @property
    def status(self) -> int:
        """SCT << 8 | SC, to compare with `Status`."""
        return (self.status_field >> 1) & 0x7FF

    @property
    def more(self) -> bool:
        """More: the error log has an entry for the command."""
        return bool(self.status_field & 1 << 14)

    @property
    def dnr(self) -> bool:
        """Do Not Retry."""
        return bool(self.status_field & 1 << 15)


class ReadWrite:
    """Bits of Command Dword 12 of the NVM Command Set's commands (NVM Command Set 1.0, 3.2).

    Bits 15:0 are NLB, 0's based.
    """

    DEAC = 1 << 25
    """Deallocate (Write Zeroes)."""
    PRINFO = 0xF << 26
    FUA = 1 << 30
    """Force Unit Access."""
    LR = 1 << 31
    """Limited Retry."""


class QueueFlags:
    """Bits of Command Dword 11 of Create I/O Queue commands (Base 2.0, sections 5.4 and 5.5)."""

    PC = 1 << 0
    """Physically Contiguous."""
    IEN = 1 << 1
    """Interrupts Enabled (completion queues); bits 2:1 are QPRIO for submission queues."""
