"""Asynchronous Event Requests: parked until there is something to tell (Base 2.0, section 5.2).

Doesn't implement immediate, I/O command set specific and vendor specific events.
"""

from __future__ import annotations

from collections.abc import Callable

from shadowbell.nvme import EventType, LogPage, Status
from shadowbell.nvme.events import event_dword

from .command import CommandError

LIMIT = 4
"""Asynchronous Event Requests that may be outstanding: AERL + 1."""


class AsyncEvents:
    """Requests that wait for events, and events that wait for requests.

    `complete(cid, status, dw0)` posts an admin completion.
    """

    def __init__(self, complete: Callable[[int, int, int], None]) -> None:
        self._complete = complete
        self._parked: list[int] = []
        self._pending: list[tuple[EventType, int, LogPage]] = []
        # A reported event masks its type until the host reads the log page named here.
        self._masked: dict[EventType, LogPage] = {}

    def park(self, cid: int) -> None:
        """Keep a request until an event comes; CommandError when there are too many."""
        if len(self._parked) == LIMIT:
            raise CommandError(Status.ASYNCHRONOUS_EVENT_REQUEST_LIMIT_EXCEEDED)
        self._parked.append(cid)
        self._deliver()

    def post(self, kind: EventType, information: int, log: LogPage) -> None:
        """Report an event now, or when a request comes and its type isn't masked.

        An event that already waits is not told twice, so what waits is bounded.
        """
        event = (kind, information, log)
        if event not in self._pending:
            self._pending.append(event)
        self._deliver()

    def log_read(self, log: int) -> None:
        """The host read `log` without Retain Asynchronous Event: clear what pointed there."""
        self._masked = {kind: page for kind, page in self._masked.items() if page != log}
        self._deliver()

    def abort(self, cid: int) -> bool:
        """Complete the parked request `cid` as aborted; False when there is none."""
        if cid not in self._parked:
            return False
        self._parked.remove(cid)
        self._complete(cid, Status.COMMAND_ABORT_REQUESTED, 0)
        return True

    def reset(self) -> None:
        """Forget requests (without completing them) and events, as a reset does."""
        self._parked.clear()
        self._pending.clear()
        self._masked.clear()

    def _deliver(self) -> None:
        for event in list(self._pending):
            kind, information, log = event
            if not self._parked:
                return
            if kind in self._masked:
                continue
            self._pending.remove(event)
            self._masked[kind] = log
            self._complete(self._parked.pop(0), 0, event_dword(kind, information, log))
