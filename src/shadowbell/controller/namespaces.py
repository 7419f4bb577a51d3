"""Namespaces: what one is, and which are attached to the controller."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property

from shadowbell.block import Backend
from shadowbell.nvme import NSID_ALL, Status
from shadowbell.nvme.features import WriteProtection
from shadowbell.nvme.identify import (
    IdentifierType,
    NamespaceList,
    build_descriptors,
)
from shadowbell.nvme.identify_namespace import (
    Dlfeat,
    IdentifyNamespace,
    IdentifyNamespaceIndependent,
    Nsattr,
    Nsfeat,
    Nstat,
)
from shadowbell.nvme.opcodes import CommandSet

from .command import CommandError, location
from .engine import Engine

MAX_NAMESPACES = 256
"""NN: the largest valid namespace identifier."""

# Files and memory are kept in pages of this size: smaller writes and discards cost a
# read-modify-write, so this is what a host should align to.
_PREFERRED_GRANULARITY = 4096


@dataclass(eq=False)
class Namespace:
    """A namespace: `backend.size` bytes in blocks of `lba` bytes (512 or 4096).

    EUI64, NGUID and UUID follow from `serial`, `nsid` and `succession` alone, so a disk keeps its
    names over restarts of the process. `succession` counts the other disks that had the identifier
    before it, so that none is taken for another. `read_only` is write protection for good.
    """

    nsid: int
    backend: Backend
    _: KW_ONLY
    serial: str
    lba: int = 512
    read_only: bool = False
    succession: int = 0
    protection: WriteProtection = field(default=WriteProtection.NONE, init=False)

    def __post_init__(self) -> None:
        if self.read_only:
            self.protection = WriteProtection.WRITE_PROTECT

    @cached_property
    def _digest(self) -> bytes:
        name = f"shadowbell namespace {self.nsid} of {self.serial}"
        if self.succession:
            name += f", disk {self.succession}"
        return hashlib.sha256(name.encode()).digest()

    @cached_property
    def eui64(self) -> bytes:
        """8 bytes, marked as locally administered: no IEEE identifier is registered."""
        return bytes((self._digest[0] & 0xFC | 0x02,)) + self._digest[1:8]

    @cached_property
    def nguid(self) -> bytes:
        """16 bytes: a vendor extension, then an EUI-64 whose identifier is locally administered."""
        digest = self._digest
        return digest[8:16] + bytes((digest[16] & 0xFC | 0x02,)) + digest[17:24]

    @cached_property
    def uuid(self) -> uuid.UUID:
        """A UUID of version 8: made from a digest in a way of our own (RFC 9562, section 5.8)."""
        raw = bytearray(hashlib.sha256(b"uuid" + self._digest).digest()[:16])
        raw[6] = raw[6] & 0x0F | 0x80
        raw[8] = raw[8] & 0x3F | 0x80
        return uuid.UUID(bytes=bytes(raw))

    @property
    def blocks(self) -> int:
        """Capacity in logical blocks."""
        return self.backend.size // self.lba

    def identify(self) -> IdentifyNamespace:
        """Identify CNS 00h."""
        data = IdentifyNamespace()
        data.nsze = data.ncap = data.nuse = self.blocks
        data.nvmcap = self.blocks * self.lba
        data.lbaf[0].lbads = self.lba.bit_length() - 1
        data.nsfeat = Nsfeat.OPTIMAL_PERFORMANCE
        granularity = max(_PREFERRED_GRANULARITY // self.lba, 1) - 1
        data.npwg = data.npwa = data.npdg = data.npda = data.nows = granularity
        if self.backend.supports_discard and self.backend.discard_zeroes:
            data.dlfeat = Dlfeat.READS_ZEROES | Dlfeat.WRITE_ZEROES_DEALLOCATES
        data.nsattr = self._attributes()
        data.nguid = self.nguid
        data.eui64 = self.eui64
        return data

    def identify_independent(self) -> IdentifyNamespaceIndependent:
        """Identify CNS 08h."""
        data = IdentifyNamespaceIndependent()
        data.nsattr = self._attributes()
        data.nstat = Nstat.READY
        return data

    def identification_descriptors(self) -> bytes:
        """Identify CNS 03h."""
        return build_descriptors(
            (
                (IdentifierType.EUI64, self.eui64),
                (IdentifierType.NGUID, self.nguid),
                (IdentifierType.UUID, self.uuid.bytes),
                (IdentifierType.CSI, bytes((CommandSet.NVM,))),
            )
        )

    def _attributes(self) -> int:
        return Nsattr.WRITE_PROTECTED if self.protection else 0


class NamespaceTable:
    """The attached namespaces, and those that changed since the host last read log 04h."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._by_nsid: dict[int, Namespace] = {}
        self.changed: set[int] = set()

    def __iter__(self) -> Iterator[Namespace]:
        return (self._by_nsid[nsid] for nsid in sorted(self._by_nsid))

    def __getitem__(self, nsid: int) -> Namespace:
        return self._by_nsid[nsid]

    def __contains__(self, nsid: int) -> bool:
        return nsid in self._by_nsid

    def writable(self) -> set[int]:
        """Those that are not write protected."""
        return {nsid for nsid, made in self._by_nsid.items() if not made.protection}

    def attach(self, namespace: Namespace) -> None:
        """Make `namespace` usable; ValueError when its identifier is taken or out of range."""
        nsid = namespace.nsid
        if not 1 <= nsid <= MAX_NAMESPACES:
            raise ValueError(f"namespace id {nsid} is not in 1..{MAX_NAMESPACES}")
        if nsid in self._by_nsid:
            raise ValueError(f"namespace id {nsid} is in use")
        shift = namespace.lba.bit_length() - 1
        self._engine.attach_namespace(nsid, namespace.backend, shift, bool(namespace.protection))
        self._by_nsid[nsid] = namespace

    def detach(self, nsid: int) -> Namespace:
        """Take a namespace away once its commands are done; KeyError when there is none."""
        namespace = self._by_nsid.pop(nsid)
        self._engine.detach_namespace(nsid)
        return namespace

    def resize(self, nsid: int, size: int) -> None:
        """Make a namespace `size` bytes, whole blocks; KeyError when there is none, or OSError."""
        self._engine.resize_namespace(self._by_nsid[nsid].nsid, size)

    def protect(self, nsid: int, state: WriteProtection) -> None:
        """Change a namespace's write protection, which flushes it first; KeyError, or OSError."""
        namespace = self._by_nsid[nsid]
        if bool(state) != bool(namespace.protection):
            self._engine.protect_namespace(nsid, bool(state))
        namespace.protection = state

    def end_power_cycle(self) -> None:
        """Take back the protection that lasts until a power cycle."""
        for namespace in self._by_nsid.values():
            if namespace.protection is WriteProtection.UNTIL_POWER_CYCLE:
                self.protect(namespace.nsid, WriteProtection.NONE)

    def active(self, nsid: int) -> Namespace | None:
        """The namespace `nsid` of a command, None when inactive (Base 2.0, section 3.2.1.3).

        Raises CommandError when the identifier is invalid, the broadcast value included.
        """
        if not 1 <= nsid <= MAX_NAMESPACES:
            raise invalid_namespace()
        return self._by_nsid.get(nsid)

    def active_list(self, after: int) -> NamespaceList:
        """Identify CNS 02h: the active identifiers greater than `after`."""
        if after >= NSID_ALL - 1:
            raise invalid_namespace()
        return NamespaceList.of(nsid for nsid in sorted(self._by_nsid) if nsid > after)

    def changed_list(self) -> NamespaceList:
        """Log 04h (Base 2.0, section 5.16.1.5)."""
        return NamespaceList.of(sorted(self.changed))


def invalid_namespace() -> CommandError:
    """The error for an NSID that is not valid, or not active where it must be."""
    return CommandError(Status.INVALID_NAMESPACE_OR_FORMAT, location(1))
