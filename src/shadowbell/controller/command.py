"""An admin command on its way through the controller, and the error that ends one."""

from __future__ import annotations

from shadowbell.nvme import Status, SubmissionEntry
from shadowbell.nvme.fields import bits
from shadowbell.nvme.status import DO_NOT_RETRY

NO_LOCATION = 0xFFFF
"""Parameter Error Location of an error that no single field of a command caused."""

# Statuses that tell nothing against sending the same command again.
_RETRYABLE = {
    Status.COMMAND_ABORT_REQUESTED,
    Status.DATA_TRANSFER_ERROR,
    Status.INTERNAL_ERROR,
    Status.ASYNCHRONOUS_EVENT_REQUEST_LIMIT_EXCEEDED,
}


class CommandError(Exception):
    """A command fails with `status`; `location` is what the error log says of the wrong field:
    the byte of the command in bits 7:0 and the bit of that byte in bits 10:8.
    """

    def __init__(self, status: int, location: int = NO_LOCATION) -> None:
        super().__init__(status)
        self.status = status
        self.location = location


class Command:
    """An admin command: the entry's fields, and its bytes for the data plane's transfers."""

    __slots__ = ("raw", "sqe")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.sqe = SubmissionEntry.parse(raw)

    def dword(self, number: int) -> int:
        """Command Dword 10 to 15."""
        return int.from_bytes(self.raw[number * 4 : number * 4 + 4], "little")

    def bits(self, number: int, high: int, low: int) -> int:
        """Bits `high`:`low` of Command Dword `number`."""
        return bits(self.dword(number), high, low)


def location(dword: int, bit: int = 0) -> int:
    """Parameter Error Location of bit `bit` of a Command Dword."""
    return dword * 4 + bit // 8 | bit % 8 << 8


def invalid_field(dword: int, bit: int = 0) -> CommandError:
    """Invalid Field in Command; the field starts at that bit of the Command Dword."""
    return CommandError(Status.INVALID_FIELD_IN_COMMAND, location(dword, bit))


def completion_status(status: int) -> int:
    """A completion's status for SCT << 8 | SC: Do Not Retry unless a retry may help."""
    return status if status == 0 or status in _RETRYABLE else status | DO_NOT_RETRY
