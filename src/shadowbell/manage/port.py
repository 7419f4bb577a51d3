"""One controller on its socket: the device, the listener, and the client of the moment."""

from __future__ import annotations

import logging
import os
import selectors
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from shadowbell.config import MAX_SOCKET_PATH, ControllerConfig
from shadowbell.controller import Controller
from shadowbell.dataplane import Engine, IOThread, Pins
from shadowbell.dataplane.ledger import QueueLedger
from shadowbell.errors import UserError
from shadowbell.manage.attachment import Attachment, Detached, Log
from shadowbell.manage.control import SUFFIX, ControlSocket
from shadowbell.manage.disks import Disks, NamespaceStatus
from shadowbell.manage.listener import Listener
from shadowbell.pci import PciFunction, vector_count
from shadowbell.vfio_user.protocol import PAGE_SIZE

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class ControllerStatus(msgspec.Struct, kw_only=True):
    """What `shadowbell control SOCKET status` tells; `client` is the attached process.

    `pinned`: bytes of its memory that are registered with io_uring. `fixed_transfers`: transfers to
    registered memory, of all controllers since the process began.
    """

    socket: str
    serial: str
    model: str
    client: int | None
    pinned: int
    fixed_transfers: int
    namespaces: list[NamespaceStatus]


class Port:
    """Everything one ControllerConfig asks for. Raises UserError; use `close` even then.

    The selector's data are callables, which the reactor calls without arguments.
    """

    def __init__(
        self, config: ControllerConfig, selector: selectors.BaseSelector, *, iopoll: bool = False
    ) -> None:
        self.config = config
        self.engine: Engine | None = None
        self.wants_turn = False
        self._selector = selector
        self._log: Log = _Named(logging.getLogger("shadowbell"), {"socket": config.socket})
        self.disks = Disks(config.serial_number, self._log, iopoll=iopoll)
        self._controller: Controller | None = None
        self._function: PciFunction | None = None
        self._listener: Listener | None = None
        self._control: ControlSocket | None = None
        self._attachment: Attachment | None = None
        self._watching_output = False
        self._iothreads: Sequence[IOThread] = ()

    def open(self, iothreads: Sequence[IOThread], pins: Pins | None = None) -> None:
        """Open the back ends, make the device, listen. Raises UserError."""
        config = self.config
        self._iothreads = iothreads
        self.disks.open(config.namespaces)
        self._mapped = config.doorbells == "mapped"
        if self._mapped and os.sysconf("SC_PAGESIZE") != PAGE_SIZE:
            self._log.warning("this host's pages are too large to map doorbells: trapping them")
            self._mapped = False
        try:
            self._make_device(pins)
        except (OSError, ValueError) as error:
            raise UserError(f"can't make the controller of {config.socket}: {error}") from error
        assert self.engine is not None
        self._listener = Listener(config.socket)
        self._selector.register(self.engine.notify_fd, READ, self._notified)
        self._selector.register(self._listener, READ, self._connected)
        self._open_control()

    def _open_control(self) -> None:
        path = self.config.control
        if path is None:
            path = self.config.socket + SUFFIX
            if len(os.fsencode(path)) > MAX_SOCKET_PATH:
                self._log.warning("no control socket: %s is too long a path for one", path)
                return
        if path:
            self._control = ControlSocket(path, self, self._selector)

    def _make_device(self, pins: Pins | None) -> None:
        config = self.config
        serial = config.serial_number
        vectors = vector_count(config.interrupts, config.max_queues)
        self.engine = Engine(
            self._iothreads,
            max_queues=config.max_queues,
            mapped=self._mapped,
            placement=config.queue_threads,
            pins=pins,
        )
        self._controller = Controller(
            self.engine,
            serial=serial,
            model=config.model,
            namespaces=self.disks.namespaces(),
            max_queues=config.max_queues,
            # A mapped doorbell can wake nobody, so shadowing it would spare the host nothing.
            dbbuf=config.dbbuf and not self._mapped,
            vectors=vectors,
        )
        self.disks.serve(self._controller)
        self._function = PciFunction(
            self._controller,
            self.engine,
            interrupts=config.interrupts,
            vectors=vectors,
            serial=serial,
        )

    def turn(self) -> None:
        """Serve the client's messages and the controller's admin queue for a while."""
        self.wants_turn = False
        self._guard(self._turn)

    def look(self) -> None:
        """Notice namespaces whose files or devices have another size than before."""
        try:
            self.disks.look()
        except Exception as error:
            self._log.error("looking at the namespaces' sizes failed: %s", error)
            self._log.debug("traceback", exc_info=True)

    def status(self) -> ControllerStatus:
        """The controller as it is now."""
        return ControllerStatus(
            socket=self.config.socket,
            serial=self.config.serial_number,
            model=self.config.model,
            client=self._attachment.pid if self._attachment is not None else None,
            pinned=self.engine.pinned_bytes if self.engine is not None else 0,
            fixed_transfers=sum(thread.fixed_transfers for thread in self._iothreads),
            namespaces=self.disks.status(),
        )

    def ledger(self) -> list[QueueLedger]:
        """Every queue's counters."""
        assert self.engine is not None
        return self.engine.ledger()

    def queue_loads(self) -> Sequence[tuple[int, int, int]]:
        """Every I/O completion queue: its id, its IOThread, the work done for it so far."""
        return self.engine.queue_loads() if self.engine is not None else ()

    def move_queue(self, cqid: int, iothread: int, *, patience_ms: int = 10) -> bool:
        """Have another IOThread serve a completion queue and all that use it.

        False: the queue's commands took longer than `patience_ms`, and it stays where it is. Raises
        UserError when there is no such queue or IOThread.
        """
        assert self.engine is not None
        try:
            moved = self.engine.move_queue(cqid, iothread, patience_ms=patience_ms)
        except ValueError as error:
            raise UserError(f"{error}: the ledger has them all") from error
        if moved:
            self._log.debug("completion queue %d moved to I/O thread %d", cqid, iothread)
        return moved

    def write_ledger(self) -> None:
        """Write the queues' counters as JSON to the socket's path with .ledger behind it."""
        assert self.engine is not None
        path = f"{self.config.socket}.ledger"
        records = msgspec.json.format(msgspec.json.encode(self.engine.ledger()), indent=1)
        try:
            with open(f"{path}.new", "wb") as file:
                file.write(records)
            os.replace(f"{path}.new", path)
        except OSError as error:
            self._log.error("can't write the ledger: %s", error)

    def close(self) -> None:
        """Detach the client, flush every namespace, give everything back. Safe to repeat."""
        if self._control is not None:
            self._control.close()
            self._control = None
        self._drop("server is stopping")
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
        if self.engine is not None:
            if self.engine.notify_fd in self._selector.get_map():
                self._selector.unregister(self.engine.notify_fd)
            if self._controller is not None:
                self._controller.close()
            self.engine.close()
            self.engine = None
            self._controller = None
            self._function = None
        self.disks.close()

    def _notified(self) -> None:
        assert self.engine is not None
        self.engine.clear_notify()
        self.turn()

    def _turn(self) -> None:
        assert self._controller is not None
        client = self._attachment
        done = client.serve() if client is not None else True
        more = self._controller.process()
        if client is None:
            return
        self._watch_output(client.has_reply_waiting)
        if done:
            client.resume()
            self.wants_turn = more
        else:
            self.wants_turn = not client.has_reply_waiting

    def _connected(self) -> None:
        assert self._listener is not None
        assert self.engine is not None
        assert self._function is not None
        try:
            client = self._listener.accept()
        except OSError as error:
            self._log.error("turned a client away: %s", error)
            return
        if client is None:
            return
        if self._attachment is not None and self._attachment.has_hung_up():
            # The IOThread hasn't told of it yet, and the next client is at the door.
            self._drop("closed the connection")
        if self._attachment is not None:
            self._log.warning(
                "turned a second client away: process %d is attached", self._attachment.pid
            )
            client.close()
            return
        try:
            attachment = Attachment(
                client, self.engine, self._function, mapped=self._mapped, log=self._log
            )
        except Exception as error:
            self._log.error("turned a client away: %s", error)
            client.close()
            return
        self._attachment = attachment
        self._log.info("client attached (process %d)", attachment.pid)

    def _flush_output(self) -> None:
        self._guard(self._flush)

    def _flush(self) -> None:
        if self._attachment is not None:
            self._attachment.flush()
            self._watch_output(self._attachment.has_reply_waiting)
            self.wants_turn = not self._attachment.has_reply_waiting

    def _watch_output(self, wanted: bool) -> None:
        if wanted == self._watching_output or self._attachment is None:
            return
        self._watching_output = wanted
        if wanted:
            self._selector.register(self._attachment, WRITE, self._flush_output)
        else:
            self._selector.unregister(self._attachment)

    def _guard(self, step: Callable[[], None]) -> None:
        """Whatever goes wrong with a client costs that client only."""
        try:
            step()
        except Detached as detached:
            self._drop(str(detached))
        except Exception as error:
            self._log.error("internal error: %s: %s", type(error).__name__, error)
            self._log.debug("traceback", exc_info=True)
            self._drop("detached after an internal error")

    def _drop(self, why: str) -> None:
        client = self._attachment
        if client is None:
            return
        self._watch_output(False)
        self._attachment = None
        self.wants_turn = False
        client.close()
        self._log.info("client detached (process %d): %s", client.pid, why)


class _Named(logging.LoggerAdapter[logging.Logger]):
    """Each line begins with the socket it is about."""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        assert self.extra is not None
        return f"{self.extra['socket']}: {msg}", kwargs
