"""Controller registers (Base 2.0, section 3.1.3; PCIe Transport 1.0, section 3.1).

CAP, CC and CSTS are structures over their bytes, so `int.from_bytes` and field access both work.
"""

from __future__ import annotations

from enum import IntEnum

from .fields import U16, U32, U64, Bits, Structure

REGISTERS_SIZE = 0x1000
"""Bytes of BAR0 before the doorbells."""
VERSION_2_0_0 = 0x00020000
NSSR_MAGIC = 0x4E564D65
""""NVMe": what a host writes to NSSR to reset the NVM subsystem."""
AQ_ENTRIES_MAX = 4096
"""An admin queue's slots; AQA's fields are 0's based and 12 bits wide."""


class Register(IntEnum):
    """Byte offsets of the registers in BAR0."""

    CAP = 0x00
    VS = 0x08
    INTMS = 0x0C
    INTMC = 0x10
    CC = 0x14
    CSTS = 0x1C
    NSSR = 0x20
    AQA = 0x24
    ASQ = 0x28
    ACQ = 0x30
    CMBLOC = 0x38
    CMBSZ = 0x3C
    BPINFO = 0x40
    BPRSEL = 0x44
    BPMBL = 0x48
    CMBMSC = 0x50
    CMBSTS = 0x58
    CMBEBS = 0x5C
    CMBSWTP = 0x60
    NSSD = 0x64
    CRTO = 0x68
    PMRCAP = 0xE00
    PMRCTL = 0xE04
    PMRSTS = 0xE08
    PMREBS = 0xE0C
    PMRSWTP = 0xE10
    PMRMSCL = 0xE14
    PMRMSCU = 0xE18


class CommandSetsSupported(IntEnum):
    """Bits of CAP.CSS."""

    NVM = 1 << 0
    IO_COMMAND_SETS = 1 << 6
    ADMIN_ONLY = 1 << 7


class CommandSetSelected(IntEnum):
    """Values of CC.CSS."""

    NVM = 0b000
    ALL_SUPPORTED = 0b110
    ADMIN_ONLY = 0b111


class ShutdownNotification(IntEnum):
    """Values of CC.SHN."""

    NONE = 0b00
    NORMAL = 0b01
    ABRUPT = 0b10


class ShutdownStatus(IntEnum):
    """Values of CSTS.SHST."""

    NORMAL_OPERATION = 0b00
    PROCESSING = 0b01
    COMPLETE = 0b10


class _Register32(Structure):
    """A 32-bit register."""

    __slots__ = ()
    SIZE = 4
    value = U32(0)

    def __init__(self, value: int = 0) -> None:
        super().__init__(value.to_bytes(4, "little"))

    def __int__(self) -> int:
        return self.value


class Capabilities(Structure):
    """CAP: Controller Capabilities."""

    __slots__ = ()
    SIZE = 8
    value = U64(0)
    mqes = U16(0)
    """Maximum Queue Entries Supported, 0's based."""
    cqr = Bits(value, 16, 16)
    """Contiguous Queues Required."""
    ams = Bits(value, 18, 17)
    to = Bits(value, 31, 24)
    """Timeout in units of 500 ms."""
    dstrd = Bits(value, 35, 32)
    """Doorbell Stride: doorbells are 4 << dstrd bytes apart."""
    nssrs = Bits(value, 36, 36)
    css = Bits(value, 44, 37)
    bps = Bits(value, 45, 45)
    cps = Bits(value, 47, 46)
    mpsmin = Bits(value, 51, 48)
    """Memory pages are at least 4096 << mpsmin bytes."""
    mpsmax = Bits(value, 55, 52)
    pmrs = Bits(value, 56, 56)
    cmbs = Bits(value, 57, 57)
    nsss = Bits(value, 58, 58)
    crwms = Bits(value, 59, 59)
    crims = Bits(value, 60, 60)

    def __init__(self, value: int = 0) -> None:
        super().__init__(value.to_bytes(8, "little"))

    def __int__(self) -> int:
        return self.value


class ControllerConfiguration(_Register32):
    """CC."""

    __slots__ = ()
    en = Bits(_Register32.value, 0, 0)
    css = Bits(_Register32.value, 6, 4)
    mps = Bits(_Register32.value, 10, 7)
    ams = Bits(_Register32.value, 13, 11)
    shn = Bits(_Register32.value, 15, 14)
    iosqes = Bits(_Register32.value, 19, 16)
    """I/O submission queue entries are 1 << iosqes bytes."""
    iocqes = Bits(_Register32.value, 23, 20)
    crime = Bits(_Register32.value, 24, 24)


class ControllerStatus(_Register32):
    """CSTS."""

    __slots__ = ()
    rdy = Bits(_Register32.value, 0, 0)
    cfs = Bits(_Register32.value, 1, 1)
    shst = Bits(_Register32.value, 3, 2)
    nssro = Bits(_Register32.value, 4, 4)
    pp = Bits(_Register32.value, 5, 5)
    st = Bits(_Register32.value, 6, 6)


class AdminQueueAttributes(_Register32):
    """AQA: sizes of the admin queues, 0's based."""

    __slots__ = ()
    asqs = Bits(_Register32.value, 11, 0)
    acqs = Bits(_Register32.value, 27, 16)
