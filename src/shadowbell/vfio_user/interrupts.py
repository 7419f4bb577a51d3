"""The client's eventfds: which vector has one, and which are masked.

The engine signals a vector through its own duplicate; ours is kept so that masking can take the
engine's away and unmasking can give it a new one (the engine then raises what was missed).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Protocol

from shadowbell.vfio_user.messages import IrqSet
from shadowbell.vfio_user.protocol import Irq, IrqSetFlag, refuse


class VectorSink(Protocol):
    """The part of the engine that raises interrupts."""

    def set_vector(self, vector: int, fd: int | None) -> None: ...
    def signal_vector(self, vector: int) -> None: ...


class Interrupts:
    """`limits` are the interrupts of each type, by Irq; only one of MSI and MSI-X may have some."""

    def __init__(self, sink: VectorSink, limits: tuple[int, ...]) -> None:
        self.limits = limits
        self._sink = sink
        self._vectors: dict[int, int] = {}
        self._masked: set[int] = set()
        self._error: int | None = None

    def set(self, request: IrqSet, fds: list[int]) -> None:
        """Carry out a SET_IRQS. Descriptors that are kept are taken out of `fds`.

        Raises Refused or OSError; what came before in the same message stays done.
        """
        if request.data != IrqSetFlag.DATA_EVENTFD:
            if fds:
                refuse("SET_IRQS carries descriptors that no flag announces")
        elif request.action != IrqSetFlag.ACTION_TRIGGER:
            refuse("SET_IRQS wants to hear of masking, which no interrupt here does by itself")
        elif fds and len(fds) != request.count:
            refuse(f"SET_IRQS of {request.count} interrupts carries {len(fds)} descriptors")
        if request.index == Irq.ERR:
            self._set_error(request, fds)
        elif request.data == IrqSetFlag.DATA_EVENTFD:
            check_eventfds(fds)
            for vector in request.chosen:
                self._assign(vector, fds.pop(0) if fds else None)
        elif not request.count:
            if self.limits[request.index]:
                self._disable()
        else:
            self._act(request)

    def close(self) -> None:
        """Forget every descriptor: the client is gone."""
        self._disable()
        self._replace_error(None)

    def _act(self, request: IrqSet) -> None:
        for vector in request.chosen:
            if request.action == IrqSetFlag.ACTION_TRIGGER:
                # The engine has no descriptor of a masked or unassigned vector: nothing to raise.
                self._sink.signal_vector(vector)
            elif request.action == IrqSetFlag.ACTION_MASK:
                self._masked.add(vector)
                if vector in self._vectors:
                    self._sink.set_vector(vector, None)
            elif vector in self._masked:
                self._masked.discard(vector)
                if vector in self._vectors:
                    self._sink.set_vector(vector, os.dup(self._vectors[vector]))

    def _assign(self, vector: int, fd: int | None) -> None:
        old = self._vectors.pop(vector, None)
        if old is not None:
            os.close(old)
        if fd is None:
            if old is not None:
                self._sink.set_vector(vector, None)
            return
        self._vectors[vector] = fd
        if vector not in self._masked:
            self._sink.set_vector(vector, os.dup(fd))

    def _disable(self) -> None:
        self._masked.clear()
        for vector in list(self._vectors):
            self._assign(vector, None)

    def _set_error(self, request: IrqSet, fds: list[int]) -> None:
        if request.action != IrqSetFlag.ACTION_TRIGGER:
            refuse("the error interrupt can't be masked")
        if request.data == IrqSetFlag.DATA_EVENTFD:
            check_eventfds(fds)
            self._replace_error(fds.pop(0) if fds else None)
        elif not request.count:
            self._replace_error(None)
        elif request.chosen and self._error is not None:
            os.eventfd_write(self._error, 1)

    def _replace_error(self, fd: int | None) -> None:
        if self._error is not None:
            os.close(self._error)
        self._error = fd


def check_eventfds(fds: Sequence[int]) -> None:
    """Refuse descriptors that a write could block on, or do who knows what to."""
    for fd in fds:
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if target != "anon_inode:[eventfd]":
            refuse(f"SET_IRQS with {target}, no eventfd", errno.EINVAL)
