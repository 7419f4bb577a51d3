"""Asynchronous events (Base 2.0, section 5.2)."""

from enum import IntEnum

from .fields import bits


class EventType(IntEnum):
    """Asynchronous Event Type."""

    ERROR_STATUS = 0x0
    SMART_HEALTH_STATUS = 0x1
    NOTICE = 0x2
    IMMEDIATE = 0x3
    IO_COMMAND_SPECIFIC_STATUS = 0x6
    VENDOR_SPECIFIC = 0x7


class ErrorEvent(IntEnum):
    """Asynchronous Event Information of Error Status."""

    WRITE_TO_INVALID_DOORBELL_REGISTER = 0x00
    INVALID_DOORBELL_WRITE_VALUE = 0x01
    DIAGNOSTIC_FAILURE = 0x02
    PERSISTENT_INTERNAL_ERROR = 0x03
    TRANSIENT_INTERNAL_ERROR = 0x04
    FIRMWARE_IMAGE_LOAD_ERROR = 0x05


class HealthEvent(IntEnum):
    """Asynchronous Event Information of SMART / Health Status."""

    NVM_SUBSYSTEM_RELIABILITY = 0x00
    TEMPERATURE_THRESHOLD = 0x01
    SPARE_BELOW_THRESHOLD = 0x02


class NoticeEvent(IntEnum):
    """Asynchronous Event Information of Notice."""

    NAMESPACE_ATTRIBUTE_CHANGED = 0x00
    FIRMWARE_ACTIVATION_STARTING = 0x01
    TELEMETRY_LOG_CHANGED = 0x02
    ASYMMETRIC_NAMESPACE_ACCESS_CHANGE = 0x03


class EventConfiguration:
    """Bits of the Asynchronous Event Configuration feature (Base 2.0, section 5.27.1.9)."""

    SMART_SPARE = 1 << 0
    SMART_TEMPERATURE = 1 << 1
    SMART_RELIABILITY = 1 << 2
    SMART_READ_ONLY = 1 << 3
    SMART_VOLATILE_MEMORY = 1 << 4
    SMART_PMR = 1 << 5
    NAMESPACE_ATTRIBUTE_NOTICES = 1 << 8
    FIRMWARE_ACTIVATION_NOTICES = 1 << 9


def event_dword(event_type: int, information: int, log: int) -> int:
    """Completion dword 0 that reports an event: its type, its information and the log to read."""
    return event_type | information << 8 | log << 16


def parse_event_dword(dw0: int) -> tuple[int, int, int]:
    """(type, information, log page) of completion dword 0 of an Asynchronous Event Request."""
    return bits(dw0, 2, 0), bits(dw0, 15, 8), bits(dw0, 23, 16)
