"""SMART / Health Information (Base 2.0, section 5.16.1.3).

Temperature and spare are those of an ideal disk. Controller busy time stays zero: the data plane
keeps no such clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from shadowbell.nvme.logs import CriticalWarning, SmartHealthInformation

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

    def page(
        self, ledger: Iterable[QueueLedger], *, errors: int, temperature_warning: bool
    ) -> bytes:
        """Log 02h, from the counters of all queues and the number of error log entries ever."""
        queues = list(ledger)
        read = sum(queue.bytes_read for queue in queues)
        written = sum(queue.bytes_written for queue in queues)

        def commands(*names: str) -> int:
            return sum(queue.commands.get(name, 0) for queue in queues for name in names)

        log = SmartHealthInformation()
        log.critical_warning = CriticalWarning.TEMPERATURE if temperature_warning else 0
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
