"""The vfio-user protocol's constants, its message header, and its two kinds of error.

Source: libvfio-user's docs/vfio-user.rst; what is named VFIO_* there is linux/vfio.h's. Everything
is in the host's byte order.
"""

from __future__ import annotations

import errno
import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple, NoReturn, Self

MAX_DATA_XFER_SIZE = 1 << 20
MAX_MSG_FDS = 16
MAX_DMA_MAPS = 65535
PAGE_SIZE = 4096


class ProtocolError(Exception):
    """The byte stream isn't vfio-user; the connection can't be used any more."""


class Refused(Exception):
    """A well-framed request that gets an errno reply.

    `errno` is the positive UNIX error number, `reason` says in the log what was wrong.
    """

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(number, reason)
        self.errno = number
        self.reason = reason


def refuse(reason: str, number: int = errno.EINVAL) -> NoReturn:
    raise Refused(number, reason)


class Command(IntEnum):
    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16


TYPE_MASK = 0xF
TYPE_COMMAND = 0
TYPE_REPLY = 1
FLAG_NO_REPLY = 0x10
FLAG_ERROR = 0x20


class Region(IntEnum):
    """VFIO_PCI_*_REGION_INDEX; BAR1 to BAR5, the ROM and VGA are there with size 0."""

    BAR0 = 0
    ROM = 6
    CONFIG = 7
    VGA = 8


NUM_REGIONS = 9


class Irq(IntEnum):
    """VFIO_PCI_*_IRQ_INDEX."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


NUM_IRQS = 5


class RegionFlag(IntFlag):
    READ = 1
    WRITE = 2
    MMAP = 4
    CAPS = 8


class IrqSetFlag(IntFlag):
    DATA_NONE = 1
    DATA_BOOL = 2
    DATA_EVENTFD = 4
    ACTION_MASK = 8
    ACTION_UNMASK = 16
    ACTION_TRIGGER = 32


IRQ_SET_DATA = IrqSetFlag.DATA_NONE | IrqSetFlag.DATA_BOOL | IrqSetFlag.DATA_EVENTFD
IRQ_SET_ACTION = IrqSetFlag.ACTION_MASK | IrqSetFlag.ACTION_UNMASK | IrqSetFlag.ACTION_TRIGGER

DEVICE_FLAGS_RESET = 1
DEVICE_FLAGS_PCI = 2
IRQ_INFO_EVENTFD = 1
DMA_READABLE = 1
DMA_WRITEABLE = 2
# Bits 2 and 3 (mmap, file I/O) are libvfio-user's newer hints; a descriptor says the same.
DMA_MAP_KNOWN_FLAGS = 0xF
DMA_UNMAP_DIRTY_BITMAP = 1
DMA_UNMAP_ALL = 2
REGION_INFO_CAP_SPARSE_MMAP = 1
IO_FD_TYPE_IOEVENTFD = 0

_HEADER = struct.Struct("=HHIII")

HEADER_SIZE = _HEADER.size


class Header(NamedTuple):
    message_id: int
    command: int
    size: int
    flags: int
    error: int

    @classmethod
    def decode(cls, message: bytes) -> Self:
        """The header of a whole message. Raises ProtocolError when the sizes don't agree."""
        if len(message) < HEADER_SIZE:
            raise ProtocolError(f"message of {len(message)} bytes is shorter than its header")
        header = cls(*_HEADER.unpack_from(message))
        if header.size != len(message):
            raise ProtocolError(f"header says {header.size} bytes, message has {len(message)}")
        return header


def encode_reply(request: Header, body: bytes = b"") -> bytes:
    head = _HEADER.pack(request.message_id, request.command, HEADER_SIZE + len(body), TYPE_REPLY, 0)
    return head + body


def encode_error(request: Header, number: int) -> bytes:
    """An error reply is the header alone."""
    flags = TYPE_REPLY | FLAG_ERROR
    return _HEADER.pack(request.message_id, request.command, HEADER_SIZE, flags, number)
