"""vfio-user messages as a client sees them: bytes in, bytes out, no I/O.

Layouts are those of the vfio-user specification 0.9.2 and of ``<linux/vfio.h>``. This is the
client's own codec: the device side has another one, so that one misreading can't hide in both.
"""

import enum
import json
import struct
from dataclasses import dataclass
from typing import Any, Final

HEADER: Final = struct.Struct("<HHIII")  # message id, command, size, flags, error number
REGION_ACCESS: Final = struct.Struct("<QII")  # offset, region, count
DMA_MAP: Final = struct.Struct("<IIQQQ")  # argsz, flags, offset, address, size
DMA_UNMAP: Final = struct.Struct("<IIQQ")  # argsz, flags, address, size
DEVICE_INFO: Final = struct.Struct("<IIII")  # argsz, flags, regions, irqs
REGION_INFO: Final = struct.Struct("<IIIIQQ")  # argsz, flags, index, cap_offset, size, offset
IRQ_INFO: Final = struct.Struct("<IIII")  # argsz, flags, index, count
SET_IRQS: Final = struct.Struct("<IIIII")  # argsz, flags, index, start, count
IO_FDS: Final = struct.Struct("<IIII")  # argsz, flags, index, count
IO_FD_ENTRY: Final = struct.Struct("<QQIII")  # offset, size, fd index, type, flags, ...
# An entry goes on with padding and datamatch in the specification, and with a shadow offset too in
# libvfio-user since it knows shadow ioeventfds.
IO_FD_STRIDES: Final = (40, 48)

CAPABILITY: Final = struct.Struct("<HHI")  # id, version, offset of the next one
SPARSE_MMAP: Final = struct.Struct("<II")  # areas, reserved
SPARSE_AREA: Final = struct.Struct("<QQ")  # offset, size

MAX_MESSAGE: Final = 1 << 20
CAP_SPARSE_MMAP: Final = 1
IO_FD_TYPE_IOEVENTFD: Final = 0

REGION_BAR0: Final = 0
REGION_CONFIG: Final = 7
IRQ_MSI: Final = 1
IRQ_MSIX: Final = 2


class Command(enum.IntEnum):
    """Message commands (vfio-user, "Commands")."""

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


class Flags(enum.IntFlag):
    """The header's flags: bits 3:0 are the message's type."""

    COMMAND = 0
    REPLY = 1
    TYPE_MASK = 0xF
    NO_REPLY = 0x10
    ERROR = 0x20


class RegionFlags(enum.IntFlag):
    """Flags of a region (``VFIO_REGION_INFO_FLAG_*``)."""

    READ = 1
    WRITE = 2
    MMAP = 4
    CAPS = 8


class IrqSet(enum.IntFlag):
    """Flags of DEVICE_SET_IRQS (``VFIO_IRQ_SET_*``)."""

    DATA_NONE = 1
    DATA_EVENTFD = 4
    ACTION_TRIGGER = 32


class DmaFlags(enum.IntFlag):
    """Flags of DMA_MAP."""

    READ = 1
    WRITE = 2


class WireError(Exception):
    """The server broke the protocol: a short, unasked-for or inconsistent message."""


@dataclass(frozen=True)
class Message:
    """A message's header and payload."""

    message_id: int
    command: int
    flags: int
    error: int
    payload: bytes


@dataclass(frozen=True)
class Region:
    """What the server says of a region; ``areas`` are its mappable (offset, size) parts."""

    index: int
    flags: RegionFlags
    size: int
    offset: int
    areas: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class IoEventfd:
    """One ioeventfd that GET_REGION_IO_FDS offered: a write there may be an eventfd write."""

    offset: int
    size: int
    fd_index: int
    flags: int


def encode(command: int, message_id: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """Return the whole message, header included."""
    return HEADER.pack(message_id, command, HEADER.size + len(payload), flags, 0) + payload


def decode_header(header: bytes) -> tuple[int, int, int, int, int]:
    """(message id, command, payload length, flags, error); raises WireError on a bad size."""
    message_id, command, size, flags, error = HEADER.unpack(header)
    if not HEADER.size <= size <= MAX_MESSAGE + 4096:
        raise WireError(f"the server sent a message of {size} bytes")
    return message_id, command, size - HEADER.size, flags, error


def version(major: int, minor: int, max_fds: int) -> bytes:
    """Payload of VERSION with the capabilities of this client."""
    capabilities = {
        "max_msg_fds": max_fds,
        "max_data_xfer_size": MAX_MESSAGE,
        "pgsizes": 4096,
        "max_dma_maps": 65535,
    }
    text = json.dumps({"capabilities": capabilities}, separators=(",", ":"))
    return struct.pack("<HH", major, minor) + text.encode() + b"\0"


def decode_version(payload: bytes) -> tuple[int, int, dict[str, Any]]:
    """Return (major, minor, capabilities) of a VERSION reply; a reply without JSON is legal."""
    if len(payload) < 4:
        raise WireError("the server's VERSION reply is too short")
    major, minor = struct.unpack_from("<HH", payload)
    text = payload[4:].rstrip(b"\0")
    if not text:
        return major, minor, {}
    try:
        document = json.loads(text)
        capabilities = document.get("capabilities", {})
    except (ValueError, AttributeError) as error:
        raise WireError("the server's VERSION reply holds no JSON object") from error
    if not isinstance(capabilities, dict):
        raise WireError("the server's capabilities are no JSON object")
    return major, minor, capabilities


def region_write(offset: int, region: int, data: bytes) -> bytes:
    """Payload of REGION_WRITE."""
    return REGION_ACCESS.pack(offset, region, len(data)) + data


def decode_region(payload: bytes) -> Region:
    """Decode a GET_REGION_INFO reply with its capability chain."""
    if len(payload) < REGION_INFO.size:
        raise WireError("the server's region info is too short")
    _, raw_flags, index, cap, size, offset = REGION_INFO.unpack_from(payload)
    flags = RegionFlags(raw_flags & 0xF)
    areas: list[tuple[int, int]] = []
    seen = 0
    while flags & RegionFlags.CAPS and cap:
        if cap + CAPABILITY.size > len(payload) or (seen := seen + 1) > 16:
            raise WireError("the server's region capabilities are out of bounds")
        kind, _, following = CAPABILITY.unpack_from(payload, cap)
        if kind == CAP_SPARSE_MMAP:
            start = cap + CAPABILITY.size
            if start + SPARSE_MMAP.size > len(payload):
                raise WireError("the server's sparse areas are out of bounds")
            count, _ = SPARSE_MMAP.unpack_from(payload, start)
            start += SPARSE_MMAP.size
            if start + count * SPARSE_AREA.size > len(payload):
                raise WireError("the server's sparse areas are out of bounds")
            for number in range(count):
                area = SPARSE_AREA.unpack_from(payload, start + number * SPARSE_AREA.size)
                if area[0] + area[1] > size:
                    raise WireError("a sparse area lies outside its region")
                areas.append(area)
        cap = following
    if flags & RegionFlags.MMAP and not areas:
        areas.append((0, size))
    return Region(index, flags, size, offset, tuple(areas))


def decode_io_fds(payload: bytes, fds: int) -> list[IoEventfd]:
    """Decode a GET_REGION_IO_FDS reply that came with ``fds`` descriptors.

    Sub-regions of other types than a plain ioeventfd are left out.
    """
    if len(payload) < IO_FDS.size:
        raise WireError("the server's io fds are too short")
    argsz, _, _, count = IO_FDS.unpack_from(payload)
    length = len(payload) - IO_FDS.size
    if not count or not length:
        return []  # at most an answer about the argsz to ask with
    stride = length // count
    if stride not in IO_FD_STRIDES or length % count or argsz < len(payload):
        raise WireError(f"the server's {count} io fds have {length} bytes")
    entries = []
    for number in range(count):
        entry = IO_FD_ENTRY.unpack_from(payload, IO_FDS.size + number * stride)
        offset, size, fd_index, kind, flags = entry
        if kind != IO_FD_TYPE_IOEVENTFD:
            continue
        if fd_index >= fds:
            raise WireError("the server's io fds name a descriptor it didn't send")
        entries.append(IoEventfd(offset, size, fd_index, flags))
    return entries
