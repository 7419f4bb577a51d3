"""Identify Controller structures (Base 2.0, figure 275; NVM Command Set 1.0, section 4.1.5)."""

from .fields import U8, U16, U32, U64, U128, Ascii, Bits, Raw, Structure, StructureArray, Utf8


class PowerState(Structure):
    """Power State Descriptor (Base 2.0, figure 276)."""

    __slots__ = ()
    SIZE = 32
    mp = U16(0)
    """Maximum Power in centiwatts, or in 0.0001 W when MXPS is set."""
    flags = U8(3)
    mxps = Bits(flags, 0, 0)
    nops = Bits(flags, 1, 1)
    """Non-Operational State."""
    enlat = U32(4)
    """Entry Latency in microseconds."""
    exlat = U32(8)
    rrt = U8(12)
    rrl = U8(13)
    rwt = U8(14)
    rwl = U8(15)
    idlp = U16(16)
    ips = U8(18)
    actp = U16(20)
    apw = U8(22)


class IdentifyController(Structure):
    """CNS 01h."""

    __slots__ = ()
    SIZE = 4096
    vid = U16(0)
    ssvid = U16(2)
    sn = Ascii(4, 20)
    mn = Ascii(24, 40)
    fr = Ascii(64, 8)
    rab = U8(72)
    ieee = Raw(73, 3)
    cmic = U8(76)
    mdts = U8(77)
    """Maximum Data Transfer Size: (1 << mdts) * (4096 << CAP.MPSMIN) bytes, 0 is no limit."""
    cntlid = U16(78)
    ver = U32(80)
    rtd3r = U32(84)
    rtd3e = U32(88)
    oaes = U32(92)
    ctratt = U32(96)
    rrls = U16(100)
    cntrltype = U8(111)
    fguid = Raw(112, 16)
    crdt1 = U16(128)
    crdt2 = U16(130)
    crdt3 = U16(132)
    nvmsr = U8(253)
    vwci = U8(254)
    mec = U8(255)
    oacs = U16(256)
    acl = U8(258)
    """Abort Command Limit, 0's based."""
    aerl = U8(259)
    """Asynchronous Event Request Limit, 0's based."""
    frmw = U8(260)
    lpa = U8(261)
    elpe = U8(262)
    """Error Log Page Entries, 0's based."""
    npss = U8(263)
    avscc = U8(264)
    apsta = U8(265)
    wctemp = U16(266)
    cctemp = U16(268)
    mtfa = U16(270)
    hmpre = U32(272)
    hmmin = U32(276)
    tnvmcap = U128(280)
    unvmcap = U128(296)
    rpmbs = U32(312)
    edstt = U16(316)
    dsto = U8(318)
    fwug = U8(319)
    kas = U16(320)
    hctma = U16(322)
    mntmt = U16(324)
    mxtmt = U16(326)
    sanicap = U32(328)
    hmminds = U32(332)
    hmmaxd = U16(336)
    nsetidmax = U16(338)
    endgidmax = U16(340)
    anatt = U8(342)
    anacap = U8(343)
    anagrpmax = U32(344)
    nanagrpid = U32(348)
    pels = U32(352)
    domainid = U16(356)
    megcap = U128(368)
    sqes = U8(512)
    """Submission entry sizes as powers of two: required in bits 3:0, maximum in bits 7:4."""
    cqes = U8(513)
    maxcmd = U16(514)
    nn = U32(516)
    oncs = U16(520)
    fuses = U16(522)
    fna = U8(524)
    vwc = U8(525)
    awun = U16(526)
    awupf = U16(528)
    icsvscc = U8(530)
    nwpc = U8(531)
    acwu = U16(532)
    ocfs = U16(534)
    sgls = U32(536)
    mnan = U32(540)
    maxdna = U128(544)
    maxcna = U32(560)
    subnqn = Utf8(768, 256)
    ioccsz = U32(1792)
    iorcsz = U32(1796)
    icdoff = U16(1800)
    fcatt = U8(1802)
    msdbd = U8(1803)
    ofcs = U16(1804)
    psd = StructureArray(2048, PowerState, 32)


class IdentifyControllerNvm(Structure):
    """CNS 06h, CSI 00h: limits of the NVM Command Set. Zero in each means no limit."""

    __slots__ = ()
    SIZE = 4096
    vsl = U8(0)
    """Verify Size Limit, as a power of two of minimum memory pages."""
    wzsl = U8(1)
    """Write Zeroes Size Limit, likewise."""
    wusl = U8(2)
    """Write Uncorrectable Size Limit, likewise."""
    dmrl = U8(3)
    """Dataset Management Ranges Limit."""
    dmrsl = U32(4)
    """Dataset Management Range Size Limit in logical blocks."""
    dmsl = U64(8)
    """Dataset Management Size Limit in logical blocks."""


class ControllerType:
    """CNTRLTYPE."""

    IO = 0x01
    DISCOVERY = 0x02
    ADMINISTRATIVE = 0x03


class Oacs:
    """Optional Admin Command Support."""

    SECURITY = 1 << 0
    FORMAT_NVM = 1 << 1
    FIRMWARE = 1 << 2
    NAMESPACE_MANAGEMENT = 1 << 3
    DEVICE_SELF_TEST = 1 << 4
    DIRECTIVES = 1 << 5
    NVME_MI = 1 << 6
    VIRTUALIZATION_MANAGEMENT = 1 << 7
    DOORBELL_BUFFER_CONFIG = 1 << 8
    GET_LBA_STATUS = 1 << 9
    LOCKDOWN = 1 << 10


class Oncs:
    """Optional NVM Command Support."""

    COMPARE = 1 << 0
    WRITE_UNCORRECTABLE = 1 << 1
    DATASET_MANAGEMENT = 1 << 2
    WRITE_ZEROES = 1 << 3
    SAVE_SELECT = 1 << 4
    RESERVATIONS = 1 << 5
    TIMESTAMP = 1 << 6
    VERIFY = 1 << 7
    COPY = 1 << 8


class Lpa:
    """Log Page Attributes."""

    SMART_PER_NAMESPACE = 1 << 0
    COMMANDS_SUPPORTED_AND_EFFECTS = 1 << 1
    EXTENDED_DATA = 1 << 2
    """NUMDU and the log page offset are supported."""
    TELEMETRY = 1 << 3
    PERSISTENT_EVENT = 1 << 4
    SUPPORTED_LOG_PAGES = 1 << 5
    """Logs 00h, 12h and 13h, and scopes in log 05h, are supported."""


class Vwc:
    """Volatile Write Cache."""

    PRESENT = 1 << 0
    FLUSH_ALL_NOT_SUPPORTED = 0b10 << 1
    """Flush with NSID FFFFFFFFh fails."""
    FLUSH_ALL_SUPPORTED = 0b11 << 1
    """Flush with NSID FFFFFFFFh flushes every namespace."""


class Sgls:
    """SGL Support."""

    SUPPORTED = 0b01
    """No alignment or granularity requirement for data blocks."""
    SUPPORTED_DWORD_ALIGNED = 0b10
    KEYED = 1 << 2
    BIT_BUCKET = 1 << 16
    CONTIGUOUS_METADATA = 1 << 17
    LENGTH_LARGER_THAN_DATA = 1 << 18
    MPTR_SGL = 1 << 19
    ADDRESS_AS_OFFSET = 1 << 20
    TRANSPORT_DATA_BLOCK = 1 << 21


class Oaes:
    """Optional Asynchronous Events Supported."""

    NAMESPACE_ATTRIBUTE_NOTICES = 1 << 8
    FIRMWARE_ACTIVATION_NOTICES = 1 << 9


class Nwpc:
    """Namespace Write Protection Capabilities."""

    WRITE_PROTECT = 1 << 0
    """No Write Protect and Write Protect are supported."""
    UNTIL_POWER_CYCLE = 1 << 1
    PERMANENT = 1 << 2


class Ctratt:
    """Controller Attributes."""

    HOST_IDENTIFIER_128_BIT = 1 << 0
