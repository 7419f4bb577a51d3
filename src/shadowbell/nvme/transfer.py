"""Data descriptors in memory: SGL descriptors and Dataset Management ranges."""

from enum import IntEnum

from .fields import U8, U32, U64, Bits, Structure


class SglType(IntEnum):
    """SGL Descriptor Type (Base 2.0, section 4.1.2)."""

    DATA_BLOCK = 0x0
    BIT_BUCKET = 0x1
    SEGMENT = 0x2
    LAST_SEGMENT = 0x3
    KEYED_DATA_BLOCK = 0x4
    TRANSPORT_DATA_BLOCK = 0x5


class SglDescriptor(Structure):
    """A 16-byte SGL descriptor (Base 2.0, section 4.1.2)."""

    __slots__ = ()
    SIZE = 16
    address = U64(0)
    length = U32(8)
    identifier = U8(15)
    type = Bits(identifier, 7, 4)
    """See `SglType`."""
    subtype = Bits(identifier, 3, 0)


class DsmRange(Structure):
    """One range of Dataset Management (NVM Command Set 1.0, section 3.2.3)."""

    __slots__ = ()
    SIZE = 16
    context_attributes = U32(0)
    length = U32(4)
    """In logical blocks."""
    slba = U64(8)


class DsmAttributes:
    """Bits of Command Dword 11 of Dataset Management."""

    IDR = 1 << 0
    """Integral Dataset for Read."""
    IDW = 1 << 1
    """Integral Dataset for Write."""
    AD = 1 << 2
    """Deallocate."""


DSM_RANGES_MAX = 256
