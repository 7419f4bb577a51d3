"""The host: attaches to a controller, sets it up as Linux does, and makes its queues."""

import contextlib
import ctypes
import mmap
import os
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Self

from shadowbell.driver.admin import Admin
from shadowbell.driver.client import Client
from shadowbell.driver.hostqueue import CompletionRing, SubmissionRing
from shadowbell.driver.memory import PAGE, Arena, Buffer
from shadowbell.driver.queue_pair import CommandError, CompletionQueue, QueuePair
from shadowbell.driver.registers import Registers
from shadowbell.driver.wire import IRQ_MSI, IRQ_MSIX, REGION_BAR0
from shadowbell.errors import UserError
from shadowbell.nvme import IdentifyController, IdentifyNamespace
from shadowbell.nvme.doorbells import (
    DOORBELL_BASE,
    completion_doorbell,
    submission_doorbell,
)
from shadowbell.nvme.identify_controller import Oacs

Doorbells = Literal["auto", "trap", "shadow", "mapped"]
DOORBELL_PAGE: Final = 0x1000


@dataclass(frozen=True)
class Namespace:
    """A namespace as the controller identifies it; ``blocks`` of ``lba_size`` bytes."""

    nsid: int
    blocks: int
    lba_size: int
    identify: IdentifyNamespace


class Host:
    """A controller in use. ``Host.connect(path)``; leave with ``detach()`` or a with block.

    ``doorbells`` says how doorbells are rung: ``trap`` by register writes, ``shadow`` by Doorbell
    Buffer Config, ``mapped`` by stores to the mapped page, ``auto`` by the best of these that
    the controller offers. Admin methods are on ``admin``; queues are made with
    ``create_queue_pair``.
    """

    def __init__(
        self,
        client: Client,
        *,
        doorbells: Doorbells = "auto",
        ioeventfds: bool = True,
        queues: int = 128,
        arena_size: int = 64 << 20,
        admin_entries: int = 64,
    ) -> None:
        self.client = client
        self.doorbells = doorbells
        self.ioeventfds = ioeventfds
        self.queues: dict[int, QueuePair] = {}
        self.completion_queues: dict[int, CompletionQueue] = {}
        self._wanted_queues = queues
        self._admin_entries = admin_entries
        self._vectors: dict[int, int] = {}
        self._event_fds: list[int] = []
        self._shadow: tuple[Buffer, Buffer] | None = None
        self._page: mmap.mmap | None = None
        self._page_address = 0
        self._attached = True
        self.arena = Arena(arena_size)
        client.dma_map(self.arena.fd, 0, self.arena.iova, self.arena.size)
        self.registers = Registers(client)
        self._irq_index = IRQ_MSIX if client.irq_count(IRQ_MSIX) else IRQ_MSI
        self.vectors = client.irq_count(self._irq_index)
        self.registers.enable_pci()
        if doorbells in ("auto", "mapped"):
            self._map_doorbells()
        self._enable()

    @classmethod
    def connect(
        cls,
        path: str | os.PathLike[str],
        *,
        doorbells: Doorbells = "auto",
        ioeventfds: bool = True,
        queues: int = 128,
        arena_size: int = 64 << 20,
        admin_entries: int = 64,
        timeout: float = 5.0,
    ) -> Self:
        """Attach to the server at ``path`` (a socket, or a directory with ``cntrl``).

        Raises UserError when nobody listens or the doorbell way isn't offered, ControllerFailed
        when the controller can't be enabled, WireError when the server breaks the protocol.
        """
        client = Client(path, timeout=timeout)
        try:
            return cls(
                client,
                doorbells=doorbells,
                ioeventfds=ioeventfds,
                queues=queues,
                arena_size=arena_size,
                admin_entries=admin_entries,
            )
        except BaseException:
            client.close()
            raise

    # --- set-up

    def _map_doorbells(self) -> None:
        found = self.client.map_region(REGION_BAR0, DOORBELL_BASE, DOORBELL_PAGE)
        if found is None:
            if self.doorbells == "mapped":
                raise UserError("the server maps no doorbells: serve with --doorbells mapped")
            return
        self._page, offset = found
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        self._page_address = start + offset - DOORBELL_BASE

    def _enable(self) -> None:
        self.registers.disable()
        entries = min(self._admin_entries, 4096)
        self.admin = Admin(self._pair(0, entries, None, None))
        queue = self.admin.queue
        acq = queue.completions.memory.iova
        self.registers.enable(queue.memory.iova, acq, entries)
        self.controller: IdentifyController = self.admin.identify_controller()
        self.max_transfer = PAGE << self.controller.mdts if self.controller.mdts else 1 << 20
        self.namespaces = {nsid: self._namespace(nsid) for nsid in self.admin.active_namespaces()}
        self.max_queues = min(self.admin.request_queues(self._wanted_queues))
        offered = bool(self.controller.oacs & Oacs.DOORBELL_BUFFER_CONFIG)
        if self.doorbells == "shadow" and not offered:
            raise UserError(
                "the controller has no Doorbell Buffer Config: serve without --no-dbbuf"
            )
        self.shadowed = offered and self.doorbells in ("auto", "shadow")
        if self.shadowed:
            self._shadow = (self.arena.allocate(PAGE), self.arena.allocate(PAGE))
            self.admin.configure_doorbell_buffer(self._shadow[0].iova, self._shadow[1].iova)

    def _namespace(self, nsid: int) -> Namespace:
        identify = self.admin.identify_namespace(nsid)
        size = 1 << identify.lbaf[identify.flbas_index].lbads
        return Namespace(nsid, identify.nsze, size, identify)

    def lba_size(self, nsid: int) -> int:
        """Bytes of a block of the namespace (512 when there is no such namespace)."""
        namespace = self.namespaces.get(nsid)
        return namespace.lba_size if namespace else 512

    def vector_fd(self, vector: int) -> int:
        """The eventfd of an interrupt vector, given to the device at first use."""
        if vector not in self._vectors:
            if not 0 <= vector < self.vectors:
                raise ValueError(f"the controller has {self.vectors} vectors, not {vector + 1}")
            fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._vectors[vector] = fd
            self.client.set_irqs(self._irq_index, vector, [fd])
        return self._vectors[vector]

    def _pair(
        self, qid: int, entries: int, vector: int | None, shared: CompletionQueue | None
    ) -> QueuePair:
        socket, stride = self.client.fileno(), self.registers.capabilities.dstrd
        if shared is None:
            slots = self.arena.allocate(entries * 16)
            irq = self.vector_fd(vector) if vector is not None else -1
            place = completion_doorbell(qid, stride)
            completions = CompletionRing(qid, entries, slots.address, socket, place, irq)
            if self._page_address:
                completions.map(self._page_address + place)
            shared = CompletionQueue(completions, slots, vector)
        memory = self.arena.allocate(entries * 64)
        place = submission_doorbell(qid, stride)
        ring = SubmissionRing(qid, entries, memory.address, socket, place, shared.ring)
        if self._page_address:
            ring.map(self._page_address + place)
        return QueuePair(ring, shared, memory, self.arena, self.lba_size)

    # --- I/O queues

    def create_queue_pair(
        self,
        entries: int = 128,
        *,
        interrupts: bool = False,
        vector: int | None = None,
        share: CompletionQueue | None = None,
        qid: int | None = None,
    ) -> QueuePair:
        """Create an I/O queue pair of ``entries`` slots each.

        ``interrupts`` takes vector ``qid`` (or ``vector``), else the queue is polled. ``share``
        completes to another pair's completion queue instead of a new one.
        """
        if qid is None:
            taken = self.queues.keys() | self.completion_queues.keys()
            qid = next(number for number in range(1, 256) if number not in taken)
        if interrupts and vector is None:
            vector = qid % self.vectors
        self._clear_shadow(qid)
        pair = self._pair(qid, entries, vector, share)
        made = False
        try:
            if share is None:
                self.admin.create_cq(qid, pair.completions.memory.iova, entries, vector)
                made = True
            self.admin.create_sq(qid, pair.memory.iova, entries, pair.completions.qid)
        except CommandError:
            if made:
                self.admin.delete_cq(qid)
            pair.ring.detach()
            pair.memory.free()
            if share is None:
                pair.completions.memory.free()
            raise
        self.queues[qid] = pair
        self.completion_queues[pair.completions.qid] = pair.completions
        self._use_shadow(pair, own_completions=share is None)
        return pair

    def _shadow_places(self, qid: int) -> tuple[int, int]:
        stride = self.registers.capabilities.dstrd
        base = DOORBELL_BASE
        return submission_doorbell(qid, stride) - base, completion_doorbell(qid, stride) - base

    def _clear_shadow(self, qid: int) -> None:
        if self._shadow is None:
            return
        for buffer in self._shadow:
            for place in self._shadow_places(qid):
                buffer.view[place : place + 4] = bytes(4)

    def _use_shadow(self, pair: QueuePair, *, own_completions: bool) -> None:
        if self._shadow is None:
            return
        shadow, event = (buffer.address for buffer in self._shadow)
        tail, head = self._shadow_places(pair.qid)
        pair.ring.shadow(shadow + tail, event + tail)
        if own_completions:
            pair.completions.ring.shadow(shadow + head, event + head)
        if self.ioeventfds:
            self._use_ioeventfds(pair, own_completions)

    def _use_ioeventfds(self, pair: QueuePair, own_completions: bool) -> None:
        offered = self.client.io_eventfds(REGION_BAR0)
        stride = self.registers.capabilities.dstrd
        fd = offered.pop(submission_doorbell(pair.qid, stride), None)
        if fd is not None:
            pair.ring.ioeventfd(fd)
            self._event_fds.append(fd)
        fd = offered.pop(completion_doorbell(pair.qid, stride), None)
        if fd is not None and own_completions:
            pair.completions.ring.ioeventfd(fd)
            self._event_fds.append(fd)
        elif fd is not None:
            os.close(fd)
        for other in offered.values():
            os.close(other)

    def delete_queue_pair(self, pair: QueuePair) -> None:
        """Delete the submission queue, and its completion queue with the last that used it.

        A load that runs on the queue must have been stopped or killed first.
        """
        self._await_loads([pair])
        self.admin.delete_sq(pair.qid)
        pair.ring.detach()
        self.queues.pop(pair.qid, None)
        self._release(pair)
        completions = pair.completions
        if not completions.ring.rings:
            self.admin.delete_cq(completions.qid)
            self.completion_queues.pop(completions.qid, None)
            completions.memory.free()

    def _release(self, pair: QueuePair) -> None:
        pair.memory.free()
        for buffer in pair.orphans:
            buffer.free()
        pair.orphans.clear()

    @staticmethod
    def _await_loads(pairs: list[QueuePair]) -> None:
        end = time.monotonic() + 10
        while any(pair.loads or pair.completions.ring.busy for pair in pairs):
            if time.monotonic() > end:
                raise TimeoutError("a load still runs on the queue")
            time.sleep(0.0005)

    # --- reset and end

    def _drop_queues(self) -> None:
        # After a reset or a hang-up: the device has forgotten them all.
        pairs = [*self.queues.values(), self.admin.queue]
        for pair in pairs:
            pair.ring.kill()
        self._await_loads(pairs)

    def _free_queues(self) -> None:
        for pair in [*self.queues.values(), self.admin.queue]:
            pair.ring.detach()
            self._release(pair)
        for completions in [*self.completion_queues.values(), self.admin.queue.completions]:
            completions.memory.free()
        self.queues.clear()
        self.completion_queues.clear()
        for buffer in self._shadow or ():
            buffer.free()
        self._shadow = None
        for fd in self._event_fds:
            os.close(fd)
        self._event_fds.clear()

    def reset(self, *, device: bool = False) -> None:
        """Controller reset by CC.EN (or DEVICE_RESET), and set up again, without I/O queues.

        Loads that run end at once, their commands lost.
        """
        self._drop_queues()
        if device:
            self.client.reset()
            self.registers.enable_pci()
        self.registers.disable()
        self._free_queues()
        self._enable()

    def shut_down(self, *, abrupt: bool = False) -> None:
        """Shutdown notification: the device makes everything durable. Only detach() follows."""
        self._drop_queues()
        self.registers.shut_down(abrupt=abrupt)

    def detach(self, *, shut_down: bool = True) -> None:
        """Leave: shut down (unless told otherwise or impossible), hang up, free everything."""
        if not self._attached:
            return
        self._attached = False
        try:
            self._drop_queues()
            if shut_down:
                with contextlib.suppress(OSError):
                    self.registers.shut_down()
        finally:
            self.client.close()
            self._free_queues()
            for fd in self._vectors.values():
                os.close(fd)
            self._vectors.clear()
            self.arena.close()
            if self._page is not None:
                self._page.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach(shut_down=error is None)
