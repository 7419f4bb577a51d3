"""Log pages (Base 2.0, section 5.16)."""

from enum import IntEnum

from .fields import U8, U16, U32, U64, U128, Ascii, Bits, Structure, StructureArray, UintArray


class LogPage(IntEnum):
    """Log Page Identifiers."""

    SUPPORTED_LOG_PAGES = 0x00
    ERROR_INFORMATION = 0x01
    SMART_HEALTH_INFORMATION = 0x02
    FIRMWARE_SLOT_INFORMATION = 0x03
    CHANGED_NAMESPACE_LIST = 0x04
    COMMANDS_SUPPORTED_AND_EFFECTS = 0x05
    DEVICE_SELF_TEST = 0x06
    TELEMETRY_HOST_INITIATED = 0x07
    TELEMETRY_CONTROLLER_INITIATED = 0x08
    FEATURE_IDENTIFIERS_SUPPORTED_AND_EFFECTS = 0x12
    NVME_MI_COMMANDS_SUPPORTED_AND_EFFECTS = 0x13


class SupportedLogPages(Structure):
    """Log 00h: one dword for each log identifier; bit 0 LSUPP, bit 1 IOS."""

    __slots__ = ()
    SIZE = 1024
    lids = UintArray(0, 4, 256)
    LSUPP = 1 << 0


class ErrorInformation(Structure):
    """One entry of log 01h."""

    __slots__ = ()
    SIZE = 64
    error_count = U64(0)
    """Unique and increasing; 0 marks an unused entry."""
    sqid = U16(8)
    cid = U16(10)
    status_field = U16(12)
    phase = Bits(status_field, 0, 0)
    status = Bits(status_field, 15, 1)
    parameter_error_location = U16(14)
    lba = U64(16)
    nsid = U32(24)
    vendor_specific_information_available = U8(28)
    trtype = U8(29)
    command_specific_information = U64(32)
    transport_type_specific_information = U16(40)


class SmartHealthInformation(Structure):
    """Log 02h."""

    __slots__ = ()
    SIZE = 512
    critical_warning = U8(0)
    composite_temperature = U16(1)
    """In kelvins."""
    available_spare = U8(3)
    available_spare_threshold = U8(4)
    percentage_used = U8(5)
    endurance_group_critical_warning_summary = U8(6)
    data_units_read = U128(32)
    """In thousands of 512-byte units, rounded up."""
    data_units_written = U128(48)
    host_read_commands = U128(64)
    host_write_commands = U128(80)
    controller_busy_time = U128(96)
    """In minutes."""
    power_cycles = U128(112)
    power_on_hours = U128(128)
    unsafe_shutdowns = U128(144)
    media_and_data_integrity_errors = U128(160)
    number_of_error_information_log_entries = U128(176)
    warning_composite_temperature_time = U32(192)
    critical_composite_temperature_time = U32(196)
    temperature_sensors = UintArray(200, 2, 8)
    thermal_management_temperature_1_transition_count = U32(216)
    thermal_management_temperature_2_transition_count = U32(220)
    total_time_for_thermal_management_temperature_1 = U32(224)
    total_time_for_thermal_management_temperature_2 = U32(228)


class CriticalWarning:
    """Bits of the SMART log's Critical Warning."""

    SPARE_BELOW_THRESHOLD = 1 << 0
    TEMPERATURE = 1 << 1
    RELIABILITY_DEGRADED = 1 << 2
    READ_ONLY = 1 << 3
    VOLATILE_MEMORY_BACKUP_FAILED = 1 << 4


class _Revision(Structure):
    """A firmware revision, 8 ASCII characters."""

    __slots__ = ()
    SIZE = 8
    text = Ascii(0, 8)


class FirmwareSlotInformation(Structure):
    """Log 03h."""

    __slots__ = ()
    SIZE = 512
    afi = U8(0)
    """Active Firmware Info: active slot in bits 2:0, slot after the next reset in bits 6:4."""
    active_slot = Bits(afi, 2, 0)
    frs = StructureArray(8, _Revision, 7)


class CommandsSupportedAndEffects(Structure):
    """Log 05h: one dword for each opcode, see `CommandEffects`."""

    __slots__ = ()
    SIZE = 4096
    acs = UintArray(0, 4, 256)
    iocs = UintArray(1024, 4, 256)


class CommandEffects:
    """Bits of a Commands Supported and Effects dword."""

    CSUPP = 1 << 0
    """Command Supported."""
    LBCC = 1 << 1
    """Logical Block Content Change."""
    NCC = 1 << 2
    """Namespace Capability Change."""
    NIC = 1 << 3
    """Namespace Inventory Change."""
    CCC = 1 << 4
    """Controller Capability Change."""
    SCOPE_NAMESPACE = 1 << 20
    SCOPE_CONTROLLER = 1 << 21


class FeatureIdentifiersSupportedAndEffects(Structure):
    """Log 12h: one dword for each feature identifier; scopes as in `CommandEffects`."""

    __slots__ = ()
    SIZE = 1024
    fids = UintArray(0, 4, 256)
    FSUPP = 1 << 0
    UDCC = 1 << 1
    """User Data Content Change."""


NVME_MI_EFFECTS_SIZE = 4096
CHANGED_NAMESPACES_MAX = 1024
"""More changes than these report the single entry FFFFFFFFh in log 04h."""
