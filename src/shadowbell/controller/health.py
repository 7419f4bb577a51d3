"""SMART / Health Information (Base 2.0, section 5.16.1.3).

Temperature and spare are those of an ideal disk. Controller busy time stays zero: the data plane
keeps no such clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Set

from shadowbell.nvme import Status
from shadowbell.nvme.logs import CriticalWarning, SmartHealthInformation
from shadowbell.nvme.status import DO_NOT_RETRY

from .engine import QueueLedger

TEMPERATURE_KELVINS = 308
WARNING_KELVINS = 343
CRITICAL_KELVINS = 373

_DATA_UNIT = 512 * 1000


class Health:
    """What the SMART log needs beside the data plane's counters. It outlives resets."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self.power_cycles = 1
        self.unsafe_shutdowns = 0
        self._failed: set[int] = set()
        self._read_only: set[int] = set()

    def note(self, status: int, nsid: int) -> None:
        """A command of a namespace that isn't write protected ended with `status`."""
        match status & 0x7FF:
            case Status.UNRECOVERED_READ_ERROR | Status.WRITE_FAULT:
                self._failed.add(nsid)
            case Status.NAMESPACE_NOT_READY if status & DO_NOT_RETRY:
                self._failed.add(nsid)
            case Status.NAMESPACE_IS_WRITE_PROTECTED:
                self._read_only.add(nsid)

    def forget(self, nsid: int) -> None:
        """The namespace is gone, and what was wrong with it."""
        self._failed.discard(nsid)
        self._read_only.discard(nsid)

    def warnings(self, writable: Set[int]) -> int:
        """Critical Warning bits of the storage behind the namespaces; `writable` are those that
        are not write protected.
        """
        if writable and writable <= self._read_only:
            return CriticalWarning.READ_ONLY | (
                CriticalWarning.RELIABILITY_DEGRADED if self._failed else 0
            )
        failed = self._failed or self._read_only
        return CriticalWarning.RELIABILITY_DEGRADED if failed else 0

    def page(self, ledger: Iterable[QueueLedger], *, errors: int, critical_warning: int) -> bytes:
        """Log 02h, from the counters of all queues and the number of error log entries ever."""
        queues = list(ledger)
        read = sum(queue.bytes_read for queue in queues)
        written = sum(queue.bytes_written for queue in queues)

        def commands(*names: str) -> int:
            return sum(queue.commands.get(name, 0) for queue in queues for name in names)

        log = SmartHealthInformation()
        log.critical_warning = critical_warning
        log.composite_temperature = TEMPERATURE_KELVINS
        log.available_spare = 100
        log.available_spare_threshold = 10
        log.data_units_read = -(-read // _DATA_UNIT)
        log.data_units_written = -(-written // _DATA_UNIT)
        log.host_read_commands = commands("read", "compare")
        log.host_write_commands = commands("write")
        log.power_cycles = self.power_cycles
        log.power_on_hours = int(time.monotonic() - self._start) // 3600
        log.unsafe_shutdowns = self.unsafe_shutdowns
        log.media_and_data_integrity_errors = sum(queue.media_errors for queue in queues)
        log.number_of_error_information_log_entries = errors
        return bytes(log)
