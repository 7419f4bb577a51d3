"""The Get Log Page command (Base 2.0, section 5.16).

Doesn't implement self-test, telemetry and persistent event logs, and no index offsets.
"""

from __future__ import annotations

from collections.abc import Callable

from shadowbell.nvme import NSID_ALL, AdminOpcode, IoOpcode, LogPage, Status
from shadowbell.nvme.logs import (
    NVME_MI_EFFECTS_SIZE,
    CommandEffects,
    CommandsSupportedAndEffects,
    CriticalWarning,
    FeatureIdentifiersSupportedAndEffects,
    FirmwareSlotInformation,
    SupportedLogPages,
)
from shadowbell.nvme.opcodes import CommandSet

from .command import Command, CommandError, invalid_field, location
from .engine import Engine
from .error_log import ErrorLog
from .events import AsyncEvents
from .features import Features
from .health import Health
from .identify import MAX_TRANSFER, firmware_revision
from .namespaces import NamespaceTable

_ADMIN = CommandEffects.CSUPP | CommandEffects.SCOPE_CONTROLLER
_IO = CommandEffects.CSUPP | CommandEffects.SCOPE_NAMESPACE

_IO_EFFECTS = {
    IoOpcode.FLUSH: _IO,
    IoOpcode.WRITE: _IO | CommandEffects.LBCC,
    IoOpcode.READ: _IO,
    IoOpcode.COMPARE: _IO,
    IoOpcode.WRITE_ZEROES: _IO | CommandEffects.LBCC,
    IoOpcode.DATASET_MANAGEMENT: _IO | CommandEffects.LBCC,
    IoOpcode.VERIFY: _IO,
}


class Logs:
    """The log pages of one controller; `opcodes` are the admin commands that it supports."""

    def __init__(
        self,
        engine: Engine,
        *,
        errors: ErrorLog,
        health: Health,
        features: Features,
        events: AsyncEvents,
        namespaces: NamespaceTable,
        opcodes: Callable[[], set[AdminOpcode]],
    ) -> None:
        self._engine = engine
        self._errors = errors
        self._health = health
        self._features = features
        self._events = events
        self._namespaces = namespaces
        self._opcodes = opcodes
        self._pages: dict[int, Callable[[], bytes]] = {
            LogPage.SUPPORTED_LOG_PAGES: self._supported,
            LogPage.ERROR_INFORMATION: errors.page,
            LogPage.SMART_HEALTH_INFORMATION: self._smart,
            LogPage.FIRMWARE_SLOT_INFORMATION: self._firmware_slots,
            LogPage.CHANGED_NAMESPACE_LIST: lambda: bytes(namespaces.changed_list()),
            LogPage.COMMANDS_SUPPORTED_AND_EFFECTS: self._effects,
            LogPage.FEATURE_IDENTIFIERS_SUPPORTED_AND_EFFECTS: self._feature_effects,
            LogPage.NVME_MI_COMMANDS_SUPPORTED_AND_EFFECTS: lambda: bytes(NVME_MI_EFFECTS_SIZE),
        }

    def data(self, command: Command) -> bytes:
        """The bytes that the command asks for, zeros after a log's end; CommandError if none.

        Tell `finish` once they reached the host.
        """
        page = self._pages.get(command.bits(10, 7, 0))
        if page is None:
            raise CommandError(Status.INVALID_LOG_PAGE, location(10))
        length = ((command.bits(11, 15, 0) << 16 | command.bits(10, 31, 16)) + 1) * 4
        offset = command.dword(13) << 32 | command.dword(12)
        if command.sqe.nsid not in (0, NSID_ALL):
            raise invalid_field(1)  # no log is kept for each namespace (LPA bit 0)
        if command.bits(14, 23, 23):
            raise invalid_field(14, 23)  # an index offset: no log of ours is a list that has one
        if command.bits(14, 31, 24) != CommandSet.NVM:
            raise invalid_field(14, 24)
        if length > MAX_TRANSFER:
            raise invalid_field(10, 16)
        content = page()
        if offset % 4 or offset > len(content):
            raise invalid_field(12)
        return content[offset : offset + length].ljust(length, b"\0")

    def finish(self, command: Command) -> None:
        """The host has the log: clear its events unless they are to be retained (RAE)."""
        if command.bits(10, 15, 15):
            return
        log = command.bits(10, 7, 0)
        if log == LogPage.CHANGED_NAMESPACE_LIST:
            self._namespaces.changed.clear()
        self._events.log_read(log)

    def _supported(self) -> bytes:
        log = SupportedLogPages()
        for lid in self._pages:
            log.lids[lid] = SupportedLogPages.LSUPP
        return bytes(log)

    def _smart(self) -> bytes:
        return self._health.page(
            self._engine.ledger(),
            errors=self._errors.count,
            critical_warning=self._health.warnings(self._namespaces.writable())
            | (CriticalWarning.TEMPERATURE if self._features.temperature_warning else 0),
        )

    def _firmware_slots(self) -> bytes:
        log = FirmwareSlotInformation()
        log.active_slot = 1
        log.frs[0].text = firmware_revision()
        return bytes(log)

    def _effects(self) -> bytes:
        log = CommandsSupportedAndEffects()
        for opcode in self._opcodes():
            log.acs[opcode] = _ADMIN
        for io_opcode, effects in _IO_EFFECTS.items():
            log.iocs[io_opcode] = effects
        return bytes(log)

    def _feature_effects(self) -> bytes:
        log = FeatureIdentifiersSupportedAndEffects()
        for feature, namespace_specific in self._features.scopes():
            scope = (
                CommandEffects.SCOPE_NAMESPACE
                if namespace_specific
                else CommandEffects.SCOPE_CONTROLLER
            )
            log.fids[feature] = FeatureIdentifiersSupportedAndEffects.FSUPP | scope
        return bytes(log)
