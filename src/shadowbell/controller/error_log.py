"""The Error Information log: a ring of the last 64 errors (Base 2.0, section 5.16.1.2)."""

from collections import deque

from shadowbell.nvme.logs import ErrorInformation

from .command import NO_LOCATION

ENTRIES = 64
NO_COMMAND = 0xFFFF
"""CID, and SQID, of an error that belongs to no command, or to no queue."""


class ErrorLog:
    """Errors of all queues. It outlives resets, as the specification has it."""

    def __init__(self) -> None:
        self.count = 0
        self._entries: deque[bytes] = deque(maxlen=ENTRIES)

    def add(
        self,
        status: int,
        *,
        sqid: int = NO_COMMAND,
        cid: int = NO_COMMAND,
        location: int = NO_LOCATION,
        nsid: int = 0,
        lba: int = 0,
        phase: int = 0,
    ) -> None:
        """Add an error; `status` is SCT << 8 | SC, perhaps with Do Not Retry in bit 14, and
        `phase` the completion's Phase Tag.
        """
        self.count += 1
        entry = ErrorInformation()
        entry.error_count = self.count
        entry.sqid = sqid
        entry.cid = cid
        entry.status = status & 0x7FFF
        entry.phase = phase
        entry.parameter_error_location = location
        entry.nsid = nsid
        entry.lba = lba
        self._entries.appendleft(bytes(entry))

    def page(self) -> bytes:
        """Log 01h: newest first, unused entries zero."""
        return b"".join(self._entries).ljust(ENTRIES * ErrorInformation.SIZE, b"\0")
