"""The control socket of a running controller: what can be asked for, and who answers.

One JSON object a line each way. A request names its command and that command's fields:

    {"command": "resize", "nsid": 1, "size": 1073741824}
    {"ok": true, "result": 1073741824}
    {"ok": false, "error": "there is no namespace 1 (there are: 2)"}

Requests are carried out one after the other on the reactor's thread, which no I/O passes through.
"""

from __future__ import annotations

import logging
import selectors
import socket
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from shadowbell.config import parse_namespace
from shadowbell.errors import UserError
from shadowbell.limits import Limits
from shadowbell.manage.disks import Disks, Protection
from shadowbell.manage.listener import Listener
from shadowbell.manage.outbox import Outbox

SUFFIX = ".control"
"""Behind the path of a controller's socket: where its control socket is by default."""
MODE = 0o600
MAX_LINE = 65536
MAX_CLIENTS = 16

log = logging.getLogger("shadowbell")


class Request(msgspec.Struct, tag_field="command", frozen=True, forbid_unknown_fields=True):
    """The base of all requests; a subclass's tag is the command's name."""


class Status(Request, tag="status", frozen=True, forbid_unknown_fields=True):
    """The controller, its client and its namespaces (`ControllerStatus`)."""


class Ledger(Request, tag="ledger", frozen=True, forbid_unknown_fields=True):
    """Every queue's counters."""


class AddNamespace(Request, tag="add-namespace", frozen=True, forbid_unknown_fields=True):
    """Attach the namespace that `spec` describes as on the command line; gives its identifier."""

    spec: str
    nsid: int | None = None


class RemoveNamespace(Request, tag="remove-namespace", frozen=True, forbid_unknown_fields=True):
    """Detach a namespace; it is flushed and closed when this is answered."""

    nsid: int


class Resize(Request, tag="resize", frozen=True, forbid_unknown_fields=True):
    """Take up a changed size, or make it `size` bytes; gives the size in bytes."""

    nsid: int
    size: int | None = None


class WriteProtect(Request, tag="write-protect", frozen=True, forbid_unknown_fields=True):
    """Change a namespace's write protection; a host can't leave until-power-cycle, this can."""

    nsid: int
    state: Protection


class Qos(Request, tag="qos", frozen=True, forbid_unknown_fields=True):
    """Change a namespace's limits, all of them: one that isn't given is none."""

    nsid: int
    limits: Limits


class MoveQueue(Request, tag="move-queue", frozen=True, forbid_unknown_fields=True):
    """Have another IOThread serve a completion queue; gives whether it does."""

    cqid: int
    iothread: int


AnyRequest = (
    Status | Ledger | AddNamespace | RemoveNamespace | Resize | WriteProtect | Qos | MoveQueue
)


class Reply(msgspec.Struct, omit_defaults=True):
    """The answer to a request: `result` when `ok`, else `error`, one line for a user to read."""

    ok: bool
    result: Any = None
    error: str = ""


_decode = msgspec.json.Decoder(AnyRequest).decode


class Controlled(Protocol):
    """What requests are carried out on: a `Port`."""

    @property
    def disks(self) -> Disks: ...
    def status(self) -> object: ...
    def ledger(self) -> object: ...
    def move_queue(self, cqid: int, iothread: int) -> bool: ...


def carry_out(port: Controlled, request: AnyRequest) -> object:
    """Do what is asked for; returns what the reply tells. Raises UserError."""
    match request:
        case Status():
            return port.status()
        case Ledger():
            return port.ledger()
        case AddNamespace(spec, nsid):
            return port.disks.add(parse_namespace(spec), nsid)
        case RemoveNamespace(nsid):
            port.disks.remove(nsid)
            return None
        case Resize(nsid, size):
            return port.disks.resize(nsid, size)
        case WriteProtect(nsid, state):
            port.disks.protect(nsid, state)
            return None
        case MoveQueue(cqid, iothread):
            return port.move_queue(cqid, iothread)
        case Qos(nsid, limits):
            port.disks.limit(nsid, limits)
            return None


class ControlSocket:
    """Listens at `path` for requests to `port`, for this user only. Raises UserError."""

    def __init__(self, path: str, port: Controlled, selector: selectors.BaseSelector) -> None:
        self._port = port
        self._selector = selector
        self._clients: set[_Client] = set()
        self._listener = Listener(path, mode=MODE)
        selector.register(self._listener, selectors.EVENT_READ, self._connected)

    def close(self) -> None:
        for client in list(self._clients):
            client.close()
        self._selector.unregister(self._listener)
        self._listener.close()

    def _connected(self) -> None:
        try:
            connection = self._listener.accept()
        except OSError as error:
            log.error("turned a control client away: %s", error)
            return
        if connection is None:
            return
        if len(self._clients) == MAX_CLIENTS:
            connection.close()
            return
        self._clients.add(_Client(connection, self._port, self._selector, self._clients.discard))


class _Client:
    """One connection: reads a request only when the reply before it has been taken."""

    def __init__(
        self,
        connection: socket.socket,
        port: Controlled,
        selector: selectors.BaseSelector,
        gone: Callable[[_Client], None],
    ) -> None:
        self._connection = connection
        self._port = port
        self._selector = selector
        self._gone = gone
        self._outbox = Outbox(connection)
        self._received = bytearray()
        self._open = True
        selector.register(connection, selectors.EVENT_READ, self._react)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._selector.unregister(self._connection)
            self._connection.close()
            self._gone(self)

    def _react(self) -> None:
        if not self._open:
            return
        try:
            if self._outbox.waiting:
                self._outbox.flush()
            elif not self._receive():
                self.close()
                return
            self._answer()
            wanted = selectors.EVENT_WRITE if self._outbox.waiting else selectors.EVENT_READ
            self._selector.modify(self._connection, wanted, self._react)
        except OSError:
            self.close()

    def _receive(self) -> bool:
        """Read what has come; False at the end, or when a line is longer than any request."""
        data = self._connection.recv(MAX_LINE)
        self._received += data
        return bool(data) and (b"\n" in self._received or len(self._received) < MAX_LINE)

    def _answer(self) -> None:
        while not self._outbox.waiting:
            line, newline, rest = self._received.partition(b"\n")
            if not newline:
                return
            self._received = rest
            self._outbox.send(msgspec.json.encode(self._reply(bytes(line))) + b"\n", ())

    def _reply(self, line: bytes) -> Reply:
        try:
            return Reply(ok=True, result=carry_out(self._port, _decode(line)))
        except UserError as error:
            return Reply(ok=False, error=str(error))
        except msgspec.MsgspecError as error:
            return Reply(ok=False, error=f"bad request: {error}")
        except Exception as error:
            log.exception("a control request failed")
            return Reply(ok=False, error=f"internal error: {type(error).__name__}: {error}")
