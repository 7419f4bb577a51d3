"""Identify: CNS values, lists and namespace identification descriptors (Base 2.0, section 5.17)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum

from .fields import Structure, UintArray

IDENTIFY_SIZE = 4096
NSID_LIST_ENTRIES = 1024


class Cns(IntEnum):
    """Controller or Namespace Structure: bits 7:0 of Command Dword 10."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACE_LIST = 0x02
    NAMESPACE_IDENTIFICATION_DESCRIPTORS = 0x03
    NVM_SET_LIST = 0x04
    IO_COMMAND_SET_NAMESPACE = 0x05
    IO_COMMAND_SET_CONTROLLER = 0x06
    IO_COMMAND_SET_ACTIVE_NAMESPACE_LIST = 0x07
    IO_COMMAND_SET_INDEPENDENT_NAMESPACE = 0x08
    ALLOCATED_NAMESPACE_LIST = 0x10
    ALLOCATED_NAMESPACE = 0x11
    NAMESPACE_CONTROLLER_LIST = 0x12
    CONTROLLER_LIST = 0x13
    PRIMARY_CONTROLLER_CAPABILITIES = 0x14
    SECONDARY_CONTROLLER_LIST = 0x15
    NAMESPACE_GRANULARITY_LIST = 0x16
    UUID_LIST = 0x17
    DOMAIN_LIST = 0x18
    ENDURANCE_GROUP_LIST = 0x19
    IO_COMMAND_SET = 0x1C


class NamespaceList(Structure):
    """Up to 1024 namespace identifiers in increasing order, unused entries zero."""

    __slots__ = ()
    SIZE = IDENTIFY_SIZE
    entries = UintArray(0, 4, NSID_LIST_ENTRIES)

    @classmethod
    def of(cls, nsids: Iterable[int]) -> NamespaceList:
        """The list of `nsids` (at most 1024, in increasing order)."""
        made = cls()
        for index, nsid in enumerate(nsids):
            made.entries[index] = nsid
        return made

    def __iter__(self) -> Iterator[int]:
        for nsid in self.entries:
            if nsid == 0:
                return
            yield nsid


class CommandSetVectors(Structure):
    """CNS 1Ch: the combinations of I/O Command Sets; bit n of a vector stands for CSI n."""

    __slots__ = ()
    SIZE = IDENTIFY_SIZE
    vectors = UintArray(0, 8, 512)


class IdentifierType(IntEnum):
    """Namespace Identifier Type, NIDT (Base 2.0, section 5.17)."""

    EUI64 = 0x1
    NGUID = 0x2
    UUID = 0x3
    CSI = 0x4


def build_descriptors(identifiers: Iterable[tuple[int, bytes]]) -> bytes:
    """4096 bytes of Namespace Identification Descriptors from (NIDT, NID) pairs."""
    out = b"".join(bytes((nidt, len(nid), 0, 0)) + nid for nidt, nid in identifiers)
    if len(out) > IDENTIFY_SIZE:
        raise ValueError("too many namespace identification descriptors")
    return out.ljust(IDENTIFY_SIZE, b"\0")


def parse_descriptors(data: bytes) -> dict[int, bytes]:
    """NID by NIDT; parsing stops at the descriptor of length zero or at the end of `data`."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data) and data[at + 1]:
        length = data[at + 1]
        found[data[at]] = data[at + 4 : at + 4 + length]
        at += 4 + length
    return found
