"""The NVMe controller: what the registers and the admin queue make happen.

All of it runs on the control plane's one thread, but for the flush at shutdown, which may take
longer than a client waits for a register.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from shadowbell.nvme import EventType, LogPage, Status
from shadowbell.nvme.events import ErrorEvent, HealthEvent, NoticeEvent
from shadowbell.nvme.features import WriteProtection

from .admin import AdminCommands
from .engine import Engine, Event
from .error_log import ErrorLog
from .events import AsyncEvents
from .features import Features
from .health import Health
from .identify import Identify
from .logs import Logs
from .namespaces import Namespace, NamespaceTable
from .queues import Queues
from .registers import Registers

log = logging.getLogger("shadowbell")

# A turn ends after this many commands (a full admin queue), so that one guest can't hold up others.
_COMMANDS_PER_TURN = 4096
# Most flushes end within this, and then the host sees a completed shutdown at its first look.
_SHUTDOWN_GRACE_SECONDS = 0.1


class Controller:
    """An I/O controller of NVM Express 2.0 on top of `engine`, which stays the caller's.

    `max_queues` I/O queue pairs, `vectors` interrupt vectors. Raises ValueError for a serial
    number or a model that Identify can't hold, and for namespaces that collide.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        serial: str,
        model: str,
        namespaces: Sequence[Namespace],
        max_queues: int,
        dbbuf: bool,
        vectors: int,
    ) -> None:
        self._engine = engine
        self._flush: threading.Thread | None = None
        self.health = Health()
        self.errors = ErrorLog()
        self.registers = Registers(self)
        self.namespaces = NamespaceTable(engine)
        self.events = AsyncEvents(engine.complete_admin)
        self._queues = Queues(
            engine,
            max_queues=max_queues,
            vectors=vectors,
            configuration=lambda: self.registers.cc,
        )
        self._features = Features(
            engine,
            events=self.events,
            namespaces=self.namespaces,
            max_queues=max_queues,
            vectors=vectors,
            has_queues=lambda: bool(self._queues),
            vector_used=self._queues.uses_vector,
        )
        self._admin = AdminCommands(
            engine,
            errors=self.errors,
            events=self.events,
            features=self._features,
            identify=Identify(serial, model, dbbuf=dbbuf, namespaces=self.namespaces),
            logs=Logs(
                engine,
                errors=self.errors,
                health=self.health,
                features=self._features,
                events=self.events,
                namespaces=self.namespaces,
                opcodes=lambda: self._admin.opcodes(),
            ),
            queues=self._queues,
            dbbuf=dbbuf,
        )
        for namespace in namespaces:
            self.namespaces.attach(namespace)

    # --- the PCI function's side ---------------------------------------------------------------

    def read_register(self, offset: int, length: int) -> bytes:
        """`length` bytes of BAR0 at `offset` (below 1000h); reserved bytes are zero."""
        return self.registers.read(offset, length)

    def write_register(self, offset: int, data: bytes) -> None:
        """Write `data` to BAR0 at `offset` (below 1000h)."""
        self.registers.write(offset, data)

    def process(self) -> bool:
        """Handle what waits: the data plane's events, then admin commands.

        True when commands may be left, because there were more than a turn's worth.
        """
        for event in self._engine.take_events():
            self._take(event)
        for _ in range(_COMMANDS_PER_TURN):
            if not self.registers.ready:
                return False
            raw = self._engine.fetch_admin()
            if raw is None:
                return False
            self._admin.execute(raw)
        return True

    def reset(self, *, power_loss: bool = False) -> None:
        """A reset that comes from PCI: function level, of the device, or the client went away.

        `power_loss` says that the client is gone: without a shutdown, that one was unsafe.
        """
        if power_loss:
            self.health.power_cycles += 1
            if self.registers.cc.en and not self.registers.csts.shst:
                self.health.unsafe_shutdowns += 1
            self.namespaces.end_power_cycle()
        self.disable()
        self.registers.reset()

    def add_namespace(self, namespace: Namespace) -> None:
        """Attach a namespace and tell the host; ValueError when its identifier is taken."""
        self.namespaces.attach(namespace)
        self._namespace_changed(namespace.nsid)

    def remove_namespace(self, nsid: int) -> Namespace:
        """Detach a namespace when its commands are done, and tell the host; KeyError if none.

        Its back end is the caller's to flush and close.
        """
        self._join_flush()
        namespace = self.namespaces.detach(nsid)
        self.health.forget(nsid)
        self._namespace_changed(nsid)
        return namespace

    def resize_namespace(self, nsid: int, size: int) -> None:
        """Make a namespace `size` bytes and tell the host; KeyError if there is none, or OSError.

        Commands under way end first, so none of them reaches beyond the new end.
        """
        self._join_flush()
        self.namespaces.resize(nsid, size)
        self._namespace_changed(nsid)

    def protect_namespace(self, nsid: int, state: WriteProtection) -> None:
        """Change a namespace's write protection and tell the host; KeyError, or OSError.

        The operator may leave any state, which a host may not.
        """
        self._join_flush()
        if state is not self.namespaces[nsid].protection:
            self.namespaces.protect(nsid, state)
            self._namespace_changed(nsid)

    def limit_namespace(self, nsid: int, iops: float, bps: float, burst: float) -> None:
        """Let a namespace do `iops` commands and `bps` bytes a second, 0: any number.

        What it doesn't use it may make up for within `burst` seconds. KeyError if there is none.
        """
        self._engine.limit_namespace(self.namespaces[nsid].nsid, iops, bps, burst)

    def close(self) -> None:
        """Stop: no queue is left, and no flush under way."""
        self.disable()
        self._join_flush()

    # --- what the registers ask for (registers.Lifecycle) ---------------------------------------

    def enable(self, asq: int, asq_entries: int, acq: int, acq_entries: int) -> None:
        """Open the admin queues; ValueError when the engine refuses them."""
        self._engine.open_admin(asq, asq_entries, acq, acq_entries)

    def disable(self) -> None:
        """Drop queues, outstanding requests and settings (Controller Level Reset, 3.7.2)."""
        self._engine.reset()
        # What happened to the dropped queues is nothing to tell of in the next life.
        self._engine.take_events()
        self.events.reset()
        self._queues.reset()
        self._features.reset()
        self.namespaces.changed.clear()

    def begin_shutdown(self) -> None:
        """Flush every namespace on a thread of its own (CC.SHN, section 3.6).

        It asks the back ends, not the engine, which belongs to this thread.
        """
        backends = [made.backend for made in self.namespaces if not made.read_only]
        # A reset doesn't end an earlier shutdown's flush; this one waits for it, so one runs.
        earlier = self._flush

        def flush() -> None:
            if earlier is not None:
                earlier.join()
            for backend in backends:
                try:
                    backend.flush()
                except OSError as error:
                    log.error("flushing at shutdown failed: %s", error)

        self._flush = threading.Thread(target=flush, name="shadowbell-flush")
        self._flush.start()
        self._flush.join(_SHUTDOWN_GRACE_SECONDS)

    def shutdown_done(self) -> bool:
        """Whether the flush is over."""
        return self._flush is None or not self._flush.is_alive()

    def subsystem_reset(self) -> None:
        """NVM Subsystem Reset: this controller is all of its subsystem (section 3.7.1)."""
        self.disable()
        self.registers.reset(subsystem=True)

    def _join_flush(self) -> None:
        if self._flush is not None:
            self._flush.join()
            self._flush = None

    # --- events ---------------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        match event.kind:
            case "invalid-doorbell-register":
                self._doorbell_error(event, ErrorEvent.WRITE_TO_INVALID_DOORBELL_REGISTER)
            case "invalid-doorbell-value":
                self._doorbell_error(event, ErrorEvent.INVALID_DOORBELL_WRITE_VALUE)
            case "io-error":
                self.errors.add(
                    event.status,
                    sqid=event.qid,
                    cid=event.cid,
                    nsid=event.nsid,
                    lba=event.lba,
                    phase=event.phase,
                )
                self._note_health(event)
            case "bus-error":
                log.error("the guest's memory went away: controller fatal status")
                self.registers.fail()

    def _doorbell_error(self, event: Event, information: ErrorEvent) -> None:
        self.errors.add(0, sqid=event.qid)
        self.events.post(EventType.ERROR_STATUS, information, LogPage.ERROR_INFORMATION)

    def _note_health(self, event: Event) -> None:
        """Tell of storage that fails, once: the SMART log keeps what is wrong with it."""
        writable = self.namespaces.writable()
        before = self.health.warnings(writable)
        if event.nsid not in self.namespaces:
            return
        if event.nsid in writable or event.status & 0x7FF != Status.NAMESPACE_IS_WRITE_PROTECTED:
            self.health.note(event.status, event.nsid)
        new = self.health.warnings(writable) & ~before
        # Critical Warning's bits and those that ask for their events are the same.
        if new and self._features.wants(new):
            self.events.post(
                EventType.SMART_HEALTH_STATUS,
                HealthEvent.NVM_SUBSYSTEM_RELIABILITY,
                LogPage.SMART_HEALTH_INFORMATION,
            )

    def _namespace_changed(self, nsid: int) -> None:
        if not self._features.namespace_notices:
            return
        self.namespaces.changed.add(nsid)
        self.events.post(
            EventType.NOTICE,
            NoticeEvent.NAMESPACE_ATTRIBUTE_CHANGED,
            LogPage.CHANGED_NAMESPACE_LIST,
        )
