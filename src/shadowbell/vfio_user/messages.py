"""The bodies of vfio-user messages as pure bytes; layouts as in libvfio-user's docs/vfio-user.rst.

A decoder raises `Refused` for a body that is too short or carries a value the protocol rules out.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import NamedTuple, Self

from shadowbell.vfio_user.protocol import (
    DEVICE_FLAGS_PCI,
    DEVICE_FLAGS_RESET,
    DMA_MAP_KNOWN_FLAGS,
    DMA_READABLE,
    DMA_UNMAP_ALL,
    DMA_UNMAP_DIRTY_BITMAP,
    DMA_WRITEABLE,
    IO_FD_TYPE_IOEVENTFD,
    IRQ_INFO_EVENTFD,
    IRQ_SET_ACTION,
    IRQ_SET_DATA,
    MAX_DATA_XFER_SIZE,
    NUM_IRQS,
    NUM_REGIONS,
    PAGE_SIZE,
    REGION_INFO_CAP_SPARSE_MMAP,
    IrqSetFlag,
    RegionFlag,
    refuse,
)

_DMA_MAP = struct.Struct("=IIQQQ")
_DMA_UNMAP = struct.Struct("=IIQQ")
_INFO = struct.Struct("=IIII")
_REGION_INFO = struct.Struct("=IIIIQQ")
_SPARSE_MMAP = struct.Struct("=HHIIIQQ")
_IO_EVENTFD = struct.Struct("=QQIIIIQ")
_IRQ_SET = struct.Struct("=IIIII")
_ACCESS = struct.Struct("=QII")
_MULTI_COUNT = struct.Struct("=Q")
_MULTI_WRITE = struct.Struct("=QII8s")

REGION_INFO_SIZE = _REGION_INFO.size
SPARSE_MMAP_SIZE = _SPARSE_MMAP.size


def _unpack(layout: struct.Struct, body: bytes) -> tuple[int, ...]:
    # Longer bodies are legal: SPDK sends 4064 bytes with GET_REGION_INFO.
    if len(body) < layout.size:
        refuse(f"body of {len(body)} bytes, need {layout.size}")
    return layout.unpack_from(body)


class DmaMap(NamedTuple):
    """Addresses and sizes in bytes, multiples of PAGE_SIZE; `prot` is 1 read, 2 write."""

    prot: int
    offset: int
    address: int
    size: int

    @classmethod
    def decode(cls, body: bytes) -> Self:
        argsz, flags, offset, address, size = _unpack(_DMA_MAP, body)
        if argsz < _DMA_MAP.size or flags & ~DMA_MAP_KNOWN_FLAGS:
            refuse(f"DMA_MAP with argsz {argsz}, flags {flags:#x}")
        prot = flags & (DMA_READABLE | DMA_WRITEABLE)
        if not prot or not size or (address | size | offset) % PAGE_SIZE:
            refuse(f"DMA_MAP of {size:#x} at {address:#x}, offset {offset:#x}, prot {prot}")
        if address + size > 1 << 64 or offset + size > (1 << 63) - 1:
            refuse(f"DMA_MAP of {size:#x} at {address:#x} wraps")
        return cls(prot, offset, address, size)


class DmaUnmap(NamedTuple):
    all: bool
    address: int
    size: int

    @classmethod
    def decode(cls, body: bytes) -> Self:
        argsz, flags, address, size = _unpack(_DMA_UNMAP, body)
        if flags & DMA_UNMAP_DIRTY_BITMAP:
            refuse("DMA_UNMAP wants a dirty bitmap", errno.EOPNOTSUPP)
        if argsz < _DMA_UNMAP.size or flags & ~DMA_UNMAP_ALL:
            refuse(f"DMA_UNMAP with argsz {argsz}, flags {flags:#x}")
        return cls(bool(flags & DMA_UNMAP_ALL), address, size)

    @staticmethod
    def encode_reply(body: bytes) -> bytes:
        """The entry of the request, as it came."""
        return body[: _DMA_UNMAP.size]


def decode_device_info(body: bytes) -> None:
    argsz, *_ = _unpack(_INFO, body)
    if argsz < _INFO.size:
        refuse(f"GET_INFO with argsz {argsz}")


def encode_device_info() -> bytes:
    return _INFO.pack(_INFO.size, DEVICE_FLAGS_RESET | DEVICE_FLAGS_PCI, NUM_REGIONS, NUM_IRQS)


@dataclass(frozen=True, slots=True)
class RegionInfoRequest:
    argsz: int
    index: int

    @classmethod
    def decode(cls, body: bytes) -> Self:
        argsz, _, index, *_ = _unpack(_REGION_INFO, body)
        if argsz < _REGION_INFO.size or index >= NUM_REGIONS:
            refuse(f"GET_REGION_INFO of region {index}, argsz {argsz}")
        return cls(argsz, index)


def encode_region_info(index: int, size: int, *, argsz: int) -> bytes:
    """A region without capabilities, or (argsz > 32) one whose capabilities didn't fit."""
    flags = RegionFlag.READ | RegionFlag.WRITE if size else 0
    return _REGION_INFO.pack(argsz, flags, index, 0, size, 0)


def encode_mappable_region_info(index: int, size: int, area: tuple[int, int]) -> bytes:
    """A region of which one `area` (offset, size) can be mapped.

    The region's own offset is 0: the area is found in the descriptor at its offset in the region.
    """
    flags = RegionFlag.READ | RegionFlag.WRITE | RegionFlag.MMAP | RegionFlag.CAPS
    argsz = REGION_INFO_SIZE + SPARSE_MMAP_SIZE
    info = _REGION_INFO.pack(argsz, flags, index, REGION_INFO_SIZE, size, 0)
    return info + _SPARSE_MMAP.pack(REGION_INFO_CAP_SPARSE_MMAP, 1, 0, 1, 0, *area)


@dataclass(frozen=True, slots=True)
class RegionIoFdsRequest:
    argsz: int
    index: int

    @classmethod
    def decode(cls, body: bytes) -> Self:
        argsz, flags, index, count = _unpack(_INFO, body)
        if argsz < _INFO.size or flags or count or index >= NUM_REGIONS:
            refuse(f"GET_REGION_IO_FDS of region {index}, argsz {argsz}, flags {flags:#x}")
        return cls(argsz, index)


def region_io_fds_size(areas: int) -> int:
    """The argsz that a reply with so many sub-regions needs."""
    return _INFO.size + areas * _IO_EVENTFD.size


def encode_region_io_fds(index: int, areas: list[tuple[int, int, int]], *, count: int) -> bytes:
    """`areas` are (offset, size, index of the descriptor); `count` is how many there would be."""
    head = _INFO.pack(region_io_fds_size(count), 0, index, count)
    return head + b"".join(
        _IO_EVENTFD.pack(offset, size, fd_index, IO_FD_TYPE_IOEVENTFD, 0, 0, 0)
        for offset, size, fd_index in areas
    )


def decode_irq_info(body: bytes) -> int:
    """The interrupt index that is asked about."""
    argsz, _, index, _ = _unpack(_INFO, body)
    if argsz < _INFO.size or index >= NUM_IRQS:
        refuse(f"GET_IRQ_INFO of index {index}, argsz {argsz}")
    return index


def encode_irq_info(index: int, count: int) -> bytes:
    return _INFO.pack(_INFO.size, IRQ_INFO_EVENTFD if count else 0, index, count)


@dataclass(frozen=True, slots=True)
class IrqSet:
    """`chosen` holds the sub-indexes that the action is for (DATA_BOOL leaves some out)."""

    data: IrqSetFlag
    action: IrqSetFlag
    index: int
    start: int
    count: int
    chosen: list[int]

    @classmethod
    def decode(cls, body: bytes, limits: tuple[int, ...]) -> Self:
        """`limits` are the interrupts a type has, by index."""
        argsz, raw, index, start, count = _unpack(_IRQ_SET, body)
        data, action = IrqSetFlag(raw) & IRQ_SET_DATA, IrqSetFlag(raw) & IRQ_SET_ACTION
        if argsz < _IRQ_SET.size or index >= NUM_IRQS or raw >= 64:
            refuse(f"SET_IRQS of index {index}, argsz {argsz}, flags {raw:#x}")
        if data.bit_count() != 1 or action.bit_count() != 1:
            refuse(f"SET_IRQS with flags {raw:#x}")
        if start + count > limits[index]:
            refuse(f"SET_IRQS {start}+{count} of {limits[index]}, index {index}")
        disable = IrqSetFlag.DATA_NONE | IrqSetFlag.ACTION_TRIGGER
        if not count and (start or raw != disable):
            refuse(f"SET_IRQS of nothing, flags {raw:#x}, start {start}")
        chosen = list(range(start, start + count))
        if data == IrqSetFlag.DATA_BOOL:
            wanted = body[_IRQ_SET.size : _IRQ_SET.size + count]
            if len(wanted) < count:
                refuse(f"SET_IRQS has {len(wanted)} booleans for {count} interrupts")
            chosen = [vector for vector, yes in zip(chosen, wanted, strict=True) if yes]
        return cls(data, action, index, start, count, chosen)


@dataclass(frozen=True, slots=True)
class Access:
    """A range of a region; `count` in bytes."""

    offset: int
    region: int
    count: int

    @classmethod
    def decode(cls, body: bytes) -> Self:
        access = cls(*_unpack(_ACCESS, body))
        if access.count > MAX_DATA_XFER_SIZE:
            refuse(f"{access.count} bytes in one transfer")
        return access

    def data(self, body: bytes) -> bytes:
        data = body[_ACCESS.size : _ACCESS.size + self.count]
        if len(data) < self.count:
            refuse(f"REGION_WRITE of {self.count} bytes carries {len(data)}")
        return data

    def encode_reply(self, data: bytes = b"") -> bytes:
        return _ACCESS.pack(self.offset, self.region, self.count) + data


def decode_write_multi(body: bytes) -> list[tuple[Access, bytes]]:
    """The writes of a REGION_WRITE_MULTI in order."""
    (count,) = _unpack(_MULTI_COUNT, body)
    room = (len(body) - _MULTI_COUNT.size) // _MULTI_WRITE.size
    if count > room:
        refuse(f"REGION_WRITE_MULTI of {count} writes carries {room}")
    end = _MULTI_COUNT.size + count * _MULTI_WRITE.size
    writes = []
    for offset, region, size, data in _MULTI_WRITE.iter_unpack(body[_MULTI_COUNT.size : end]):
        if size > len(data):
            refuse(f"REGION_WRITE_MULTI holds a write of {size} bytes")
        writes.append((Access(offset, region, size), data[:size]))
    return writes


def encode_write_multi(completed: int) -> bytes:
    return _MULTI_COUNT.pack(completed)
