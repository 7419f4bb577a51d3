"""Get Features and Set Features (Base 2.0, sections 5.15 and 5.27; NVM Command Set 1.0, 4.1.3).

No feature is saveable. Arbitration, Error Recovery and Write Atomicity Normal are kept and
reported, and change nothing: the data plane takes queues in turn and retries nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from shadowbell.nvme import NSID_ALL, EventType, Feature, LogPage, Status
from shadowbell.nvme.events import EventConfiguration, HealthEvent
from shadowbell.nvme.features import (
    EXTENDED_HOST_IDENTIFIER_SIZE,
    HOST_IDENTIFIER_SIZE,
    TIMESTAMP_SIZE,
    FeatureCapability,
    Select,
    WriteProtection,
)
from shadowbell.nvme.fields import bits

from .command import Command, CommandError, invalid_field, location
from .engine import Engine
from .events import AsyncEvents
from .health import TEMPERATURE_KELVINS, WARNING_KELVINS
from .namespaces import NamespaceTable, invalid_namespace

_EVENTS_SUPPORTED = 0x1F | EventConfiguration.NAMESPACE_ATTRIBUTE_NOTICES
_OVER, _UNDER = 0, 1
_ALL_SENSORS = 0xF
_ADMIN_VECTOR = 0
_AGGREGATION_TIME_MICROSECONDS = 100


@dataclass(frozen=True)
class Definition:
    """A feature whose value is Command Dword 11.

    `mask`: its defined bits. `persistent`: kept over resets. `check` raises CommandError for a
    value that is not supported; `apply` makes a new value effective.
    """

    mask: int
    default: int = 0
    namespace_specific: bool = False
    persistent: bool = False
    check: Callable[[Command], None] | None = None
    apply: Callable[[int], None] | None = None


class Features:
    """The features of one controller.

    `has_queues` tells whether I/O queues exist, `vector_used` whether one of them has the vector.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        events: AsyncEvents,
        namespaces: NamespaceTable,
        max_queues: int,
        vectors: int,
        has_queues: Callable[[], bool],
        vector_used: Callable[[int], bool],
    ) -> None:
        self._engine = engine
        self._events = events
        self._namespaces = namespaces
        self._vectors = vectors
        self._has_queues = has_queues
        self._vector_used = vector_used
        queues = max_queues - 1
        self._definitions: dict[int, Definition] = {
            Feature.ARBITRATION: Definition(0xFFFFFF07, default=0b111),
            Feature.POWER_MANAGEMENT: Definition(0xFF, check=_check_power),
            Feature.TEMPERATURE_THRESHOLD: Definition(0x3FFFFF),
            Feature.ERROR_RECOVERY: Definition(
                0x1FFFF, namespace_specific=True, check=_check_recovery
            ),
            Feature.VOLATILE_WRITE_CACHE: Definition(
                1, default=1, apply=lambda value: engine.set_write_cache(bool(value))
            ),
            Feature.NUMBER_OF_QUEUES: Definition(
                0xFFFFFFFF, default=queues << 16 | queues, check=self._check_queues
            ),
            Feature.INTERRUPT_COALESCING: Definition(0xFFFF, apply=lambda _: self._coalesce()),
            Feature.INTERRUPT_VECTOR_CONFIGURATION: Definition(
                0x1FFFF, check=self._check_configured_vector
            ),
            Feature.WRITE_ATOMICITY_NORMAL: Definition(1),
            Feature.ASYNCHRONOUS_EVENT_CONFIGURATION: Definition(
                _EVENTS_SUPPORTED, apply=lambda _: self._report_temperature()
            ),
            Feature.TIMESTAMP: Definition(0),
            Feature.IO_COMMAND_SET_PROFILE: Definition(0x1FF, check=_check_profile),
            Feature.SOFTWARE_PROGRESS_MARKER: Definition(0xFF, persistent=True),
            Feature.HOST_IDENTIFIER: Definition(1),
            Feature.NAMESPACE_WRITE_PROTECTION_CONFIG: Definition(
                0b111, namespace_specific=True, persistent=True, check=self._check_protection
            ),
        }
        self._values: dict[tuple[int, int], int] = {}
        self._uncoalesced = {_ADMIN_VECTOR}
        self._thresholds: dict[int, int] = {}
        self._host_identifier = b""
        self._timestamp = 0
        self._timestamp_set = False
        self._timestamp_from = time.monotonic()
        self.reset()

    @property
    def temperature_warning(self) -> bool:
        """Whether the temperature passed a threshold (SMART critical warning bit 1)."""
        over, under = self._thresholds[_OVER], self._thresholds[_UNDER]
        return not under < TEMPERATURE_KELVINS < over

    @property
    def namespace_notices(self) -> bool:
        """Whether the host wants to hear of changed namespaces."""
        return self.wants(EventConfiguration.NAMESPACE_ATTRIBUTE_NOTICES)

    def wants(self, event: int) -> bool:
        """Whether the host asked for an event (a bit of `EventConfiguration`)."""
        return bool(self._value(Feature.ASYNCHRONOUS_EVENT_CONFIGURATION) & event)

    def scopes(self) -> Iterator[tuple[int, bool]]:
        """The supported feature identifiers and whether each is namespace specific."""
        return ((fid, made.namespace_specific) for fid, made in self._definitions.items())

    def reset(self) -> None:
        """Back to the defaults, as a Controller Level Reset does."""
        if not self._value(Feature.VOLATILE_WRITE_CACHE):
            self._engine.set_write_cache(True)
        coalesced = self._value(Feature.INTERRUPT_COALESCING)
        kept = {fid for fid, definition in self._definitions.items() if definition.persistent}
        self._values = {key: value for key, value in self._values.items() if key[0] in kept}
        self._uncoalesced = {_ADMIN_VECTOR}
        if coalesced:
            self._coalesce()
        self._thresholds = {_OVER: WARNING_KELVINS, _UNDER: 0}
        self._host_identifier = bytes(EXTENDED_HOST_IDENTIFIER_SIZE)
        # The timestamp goes on: only a power cycle stops it.

    def get(self, command: Command) -> tuple[int, bytes]:
        """Get Features: completion dword 0 and the data to send (perhaps none); CommandError."""
        fid, definition = self._definition(command)
        select = command.bits(10, 10, 8)
        if select == Select.SUPPORTED_CAPABILITIES:
            return _capabilities(definition), b""
        if select > Select.SUPPORTED_CAPABILITIES:
            raise invalid_field(10, 8)
        # Nothing is saveable, and then the default is what is saved (section 5.15.1).
        current = select == Select.CURRENT
        nsid = self._scope(command, definition)
        if nsid == NSID_ALL and definition.namespace_specific:
            raise invalid_namespace()
        match fid:
            case Feature.TIMESTAMP:
                return 0, self._read_timestamp() if current else bytes(TIMESTAMP_SIZE)
            case Feature.HOST_IDENTIFIER:
                size = _identifier_size(command)
                return 0, (self._host_identifier if current else b"").ljust(size, b"\0")[:size]
            case Feature.TEMPERATURE_THRESHOLD:
                kind = _threshold_kind(command, sensors=(0,))
                return (self._thresholds[kind] if current else (WARNING_KELVINS, 0)[kind]), b""
            case Feature.INTERRUPT_VECTOR_CONFIGURATION:
                self._check_vector(command)
                vector = command.bits(11, 15, 0)
                disabled = self._uncoalesced if current else {_ADMIN_VECTOR}
                return (vector in disabled) << 16 | vector, b""
            case Feature.NAMESPACE_WRITE_PROTECTION_CONFIG if current:
                namespace = self._namespaces.active(nsid)
                assert namespace is not None
                return namespace.protection, b""
        return (self._value(fid, nsid) if current else definition.default), b""

    def set(self, command: Command, data: Callable[[int], bytes]) -> int:
        """Set Features: completion dword 0; `data(length)` reads the host's data. CommandError."""
        fid, definition = self._definition(command)
        nsid = self._scope(command, definition)
        if command.bits(10, 31, 31):
            raise CommandError(Status.FEATURE_IDENTIFIER_NOT_SAVEABLE, location(10, 31))
        if not definition.namespace_specific and nsid not in (0, NSID_ALL):
            raise CommandError(Status.FEATURE_NOT_NAMESPACE_SPECIFIC, location(1))
        if definition.check is not None:
            definition.check(command)
        value = command.dword(11) & definition.mask
        match fid:
            case Feature.TIMESTAMP:
                self._timestamp = int.from_bytes(data(TIMESTAMP_SIZE), "little") & (1 << 48) - 1
                self._timestamp_set = True
                self._timestamp_from = time.monotonic()
            case Feature.HOST_IDENTIFIER:
                self._host_identifier = data(_identifier_size(command))
            case Feature.TEMPERATURE_THRESHOLD:
                kind = _threshold_kind(command, sensors=(0, _ALL_SENSORS))
                self._thresholds[kind] = bits(value, 15, 0)
                self._report_temperature()
            case Feature.INTERRUPT_VECTOR_CONFIGURATION:
                vector = {bits(value, 15, 0)}
                self._uncoalesced -= vector
                if bits(value, 16, 16):
                    self._uncoalesced |= vector
                self._coalesce()
            case Feature.NAMESPACE_WRITE_PROTECTION_CONFIG:
                for target in self._targets(nsid):
                    self._namespaces.protect(target, WriteProtection(value))
            case Feature.NUMBER_OF_QUEUES:
                return definition.default  # what we allocate, whatever was asked for
            case _:
                self._store(fid, nsid, value, definition)
        return 0

    def _definition(self, command: Command) -> tuple[int, Definition]:
        fid = command.bits(10, 7, 0)
        definition = self._definitions.get(fid)
        if definition is None:
            raise invalid_field(10)
        return fid, definition

    def _scope(self, command: Command, definition: Definition) -> int:
        """The command's NSID, which must be valid where it matters; CommandError."""
        nsid = command.sqe.nsid
        if nsid == NSID_ALL or (nsid == 0 and not definition.namespace_specific):
            return nsid
        if self._namespaces.active(nsid) is None:
            raise invalid_field(1)
        return nsid

    def _value(self, fid: int, nsid: int = 0) -> int:
        definition = self._definitions[fid]
        key = nsid if definition.namespace_specific else 0
        return self._values.get((fid, key), definition.default)

    def _store(self, fid: int, nsid: int, value: int, definition: Definition) -> None:
        targets = self._targets(nsid) if definition.namespace_specific else [0]
        if definition.apply is None:
            self._values.update({(fid, target): value for target in targets})
            return
        kept = dict(self._values)
        old = self._value(fid, nsid)
        self._values.update({(fid, target): value for target in targets})
        if value != old:
            try:
                definition.apply(value)
            except OSError as error:  # turning the write cache off flushes it
                self._values = kept
                raise CommandError(Status.INTERNAL_ERROR, location(11)) from error

    def _targets(self, nsid: int) -> list[int]:
        return [made.nsid for made in self._namespaces] if nsid == NSID_ALL else [nsid]

    def _check_protection(self, command: Command) -> None:
        """A state that lasts until a power cycle, or is the operator's, can't be left (8.12)."""
        state = command.bits(11, 2, 0)
        if state > WriteProtection.UNTIL_POWER_CYCLE:
            raise invalid_field(11)
        for nsid in self._targets(command.sqe.nsid):
            namespace = self._namespaces.active(nsid)
            assert namespace is not None
            fixed = namespace.protection is WriteProtection.UNTIL_POWER_CYCLE
            if (fixed or namespace.read_only) and state != namespace.protection:
                raise CommandError(Status.FEATURE_NOT_CHANGEABLE, location(11))

    def _read_timestamp(self) -> bytes:
        """48 bits of milliseconds, then the origin: 0 a reset, 1 Set Features (bits 51:49)."""
        elapsed = int((time.monotonic() - self._timestamp_from) * 1000)
        now = (self._timestamp + elapsed) & (1 << 48) - 1
        return (now | int(self._timestamp_set) << 49).to_bytes(TIMESTAMP_SIZE, "little")

    def _report_temperature(self) -> None:
        if self.temperature_warning and self.wants(EventConfiguration.SMART_TEMPERATURE):
            self._events.post(
                EventType.SMART_HEALTH_STATUS,
                HealthEvent.TEMPERATURE_THRESHOLD,
                LogPage.SMART_HEALTH_INFORMATION,
            )

    def _coalesce(self) -> None:
        """Tell the engine of Interrupt Coalescing (5.27.1.6): 0's based entries, a time."""
        value = self._value(Feature.INTERRUPT_COALESCING)
        self._engine.set_coalescing(
            bits(value, 7, 0) + 1,
            bits(value, 15, 8) * _AGGREGATION_TIME_MICROSECONDS,
            frozenset(self._uncoalesced),
        )

    def _check_queues(self, command: Command) -> None:
        if self._has_queues():
            raise CommandError(Status.COMMAND_SEQUENCE_ERROR)
        if command.bits(11, 15, 0) == 0xFFFF:
            raise invalid_field(11)
        if command.bits(11, 31, 16) == 0xFFFF:
            raise invalid_field(11, 16)

    def _check_vector(self, command: Command) -> None:
        if command.bits(11, 15, 0) >= self._vectors:
            raise invalid_field(11)

    def _check_configured_vector(self, command: Command) -> None:
        """Section 5.27.1.7: a vector is configured once an I/O completion queue has it."""
        self._check_vector(command)
        if not self._vector_used(command.bits(11, 15, 0)):
            raise invalid_field(11)


def _capabilities(definition: Definition) -> int:
    scope = FeatureCapability.NAMESPACE_SPECIFIC if definition.namespace_specific else 0
    return FeatureCapability.CHANGEABLE | scope


def _check_power(command: Command) -> None:
    if command.bits(11, 4, 0):
        raise invalid_field(11)  # NPSS 0: power state 0 is the only one


def _check_recovery(command: Command) -> None:
    if command.bits(11, 16, 16):
        raise invalid_field(11, 16)  # DULBE: deallocated blocks read zeros, never an error


def _check_profile(command: Command) -> None:
    if command.bits(11, 8, 0):
        raise CommandError(Status.IO_COMMAND_SET_COMBINATION_REJECTED, location(11))


def _identifier_size(command: Command) -> int:
    extended = command.bits(11, 0, 0)
    return EXTENDED_HOST_IDENTIFIER_SIZE if extended else HOST_IDENTIFIER_SIZE


def _threshold_kind(command: Command, sensors: tuple[int, ...]) -> int:
    """Over (0) or under (1); CommandError. Only the composite temperature has thresholds."""
    kind = command.bits(11, 21, 20)
    if command.bits(11, 19, 16) not in sensors:
        raise invalid_field(11, 16)
    if kind not in (_OVER, _UNDER):
        raise invalid_field(11, 20)
    return kind
