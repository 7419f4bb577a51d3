"""Identify Namespace data structures (NVM Command Set 1.0, section 4.1.5; Base 2.0, figure 280)."""

from .fields import U8, U16, U32, U64, U128, Bits, Raw, Structure, StructureArray, UintArray


class LbaFormat(Structure):
    """LBA Format (NVM Command Set 1.0, figure 98)."""

    __slots__ = ()
    SIZE = 4
    ms = U16(0)
    """Metadata Size in bytes."""
    lbads = U8(2)
    """LBA Data Size: blocks are 1 << lbads bytes."""
    rp = U8(3)
    """Relative Performance: 0 is best."""


class IdentifyNamespace(Structure):
    """CNS 00h: a namespace of the NVM Command Set."""

    __slots__ = ()
    SIZE = 4096
    nsze = U64(0)
    ncap = U64(8)
    nuse = U64(16)
    nsfeat = U8(24)
    nlbaf = U8(25)
    """Number of LBA Formats, 0's based."""
    flbas = U8(26)
    flbas_index = Bits(flbas, 3, 0)
    mc = U8(27)
    dpc = U8(28)
    dps = U8(29)
    nmic = U8(30)
    rescap = U8(31)
    fpi = U8(32)
    dlfeat = U8(33)
    nawun = U16(34)
    nawupf = U16(36)
    nacwu = U16(38)
    nabsn = U16(40)
    nabo = U16(42)
    nabspf = U16(44)
    noiob = U16(46)
    nvmcap = U128(48)
    npwg = U16(64)
    npwa = U16(66)
    npdg = U16(68)
    npda = U16(70)
    nows = U16(72)
    mssrl = U16(74)
    mcl = U32(76)
    msrc = U8(80)
    anagrpid = U32(92)
    nsattr = U8(99)
    nvmsetid = U16(100)
    endgid = U16(102)
    nguid = Raw(104, 16)
    eui64 = Raw(120, 8)
    lbaf = StructureArray(128, LbaFormat, 64)


class IdentifyNamespaceNvm(Structure):
    """CNS 05h, CSI 00h: what the NVM Command Set adds for protection information."""

    __slots__ = ()
    SIZE = 4096
    lbstm = U64(0)
    pic = U8(8)
    elbaf = UintArray(12, 4, 64)


class IdentifyNamespaceIndependent(Structure):
    """CNS 08h: what holds for a namespace of any I/O Command Set."""

    __slots__ = ()
    SIZE = 4096
    nsfeat = U8(0)
    nmic = U8(1)
    rescap = U8(2)
    fpi = U8(3)
    anagrpid = U32(4)
    nsattr = U8(8)
    nvmsetid = U16(10)
    endgid = U16(12)
    nstat = U8(14)


class Nsfeat:
    """Namespace Features of CNS 00h."""

    THIN_PROVISIONING = 1 << 0
    ATOMIC_WRITES = 1 << 1
    DEALLOCATED_ERROR = 1 << 2
    UID_REUSE = 1 << 3
    """NGUID and EUI64 are never used again for another namespace."""
    OPTIMAL_PERFORMANCE = 1 << 4
    """NPWG, NPWA, NPDG, NPDA and NOWS are defined."""


class Dlfeat:
    """Deallocate Logical Block Features."""

    READS_ZEROES = 0b001
    WRITE_ZEROES_DEALLOCATES = 1 << 3
    """The Deallocate bit of Write Zeroes is supported."""


class Nsattr:
    """Namespace Attributes."""

    WRITE_PROTECTED = 1 << 0


class Nstat:
    """Namespace Status of CNS 08h."""

    READY = 1 << 0
