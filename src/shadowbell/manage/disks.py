"""The namespaces of one controller as its operator sees them: opened, added, resized, removed.

All of it runs on the reactor's thread. Commands of the namespace that is changed are waited for,
those of others only as long as the engine's pause takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from shadowbell.block import Backend, open_backend
from shadowbell.config import MAX_NAMESPACES, MAX_SIZE, NamespaceConfig
from shadowbell.controller import Controller, Namespace
from shadowbell.errors import UserError
from shadowbell.limits import Limits
from shadowbell.manage.attachment import Log
from shadowbell.nvme.features import WriteProtection

Protection = Literal["none", "protect", "until-power-cycle"]

_PROTECTIONS: dict[Protection, WriteProtection] = {
    "none": WriteProtection.NONE,
    "protect": WriteProtection.WRITE_PROTECT,
    "until-power-cycle": WriteProtection.UNTIL_POWER_CYCLE,
}
_NAMES = {state: name for name, state in _PROTECTIONS.items()}


class NamespaceStatus(msgspec.Struct, kw_only=True):
    """What `shadowbell control SOCKET status` tells of a namespace; sizes in bytes."""

    nsid: int
    kind: str
    path: str | None
    size: int
    lba: int
    read_only: bool
    write_protect: str
    iops: int
    bps: int
    burst: float


@dataclass
class Disk:
    """A namespace, what was asked for, and what it is made of."""

    config: NamespaceConfig
    backend: Backend
    namespace: Namespace
    limits: Limits
    size_told: int
    """The size that was last found behind it: a change that can't be used is told once."""


class Disks:
    """Owns the back ends of a controller's namespaces. `open` first, then `serve`."""

    def __init__(self, serial: str, log: Log, *, iopoll: bool = False) -> None:
        self._serial = serial
        self._iopoll = iopoll
        self._log = log
        self._disks: dict[int, Disk] = {}
        self._controller: Controller | None = None
        # What was served under each identifier: another disk must not take over its names.
        self._served: dict[int, list[str]] = {}

    def open(self, configs: tuple[NamespaceConfig, ...]) -> None:
        """Open every back end, numbered from 1. Raises UserError."""
        for nsid, config in enumerate(configs, 1):
            self._disks[nsid] = self._open(nsid, config)

    def namespaces(self) -> list[Namespace]:
        return [disk.namespace for disk in self._disks.values()]

    def serve(self, controller: Controller) -> None:
        """The controller that the namespaces are attached to, from now on."""
        self._controller = controller
        for disk in self._disks.values():
            self._limit(disk)

    def status(self) -> list[NamespaceStatus]:
        return [self._status(nsid) for nsid in sorted(self._disks)]

    def add(self, config: NamespaceConfig, nsid: int | None = None) -> int:
        """Open a back end and attach it; the lowest identifier never used, unless one is given.

        Raises UserError.
        """
        assert self._controller is not None
        if nsid is None:
            unused = (n for n in range(1, MAX_NAMESPACES + 1) if n not in self._served)
            nsid = next(unused, None)
            if nsid is None:
                raise UserError(f"all of {MAX_NAMESPACES} namespace ids were used: give one")
        elif not 1 <= nsid <= MAX_NAMESPACES:
            raise UserError(f"namespace id {nsid} is out of range: give 1 to {MAX_NAMESPACES}")
        if nsid in self._disks:
            raise UserError(f"namespace {nsid} exists: remove it first, or use another id")
        disk = self._open(nsid, config)
        try:
            self._controller.add_namespace(disk.namespace)
        except OSError as error:
            disk.backend.close()
            raise UserError(f"can't add {_name(config)}: {error}") from error
        self._limit(disk)
        self._disks[nsid] = disk
        self._log.info("namespace %d added: %s", nsid, _name(config))
        return nsid

    def remove(self, nsid: int) -> None:
        """Detach a namespace, flush it and close its back end. Raises UserError."""
        assert self._controller is not None
        disk = self._find(nsid)
        self._controller.remove_namespace(nsid)
        del self._disks[nsid]
        self._log.info("namespace %d removed", nsid)
        try:
            if not disk.config.read_only:
                disk.backend.flush()
        except OSError as error:
            raise UserError(
                f"namespace {nsid} is removed, but flushing it failed: {error}"
            ) from error
        finally:
            disk.backend.close()

    def resize(self, nsid: int, size: int | None = None) -> int:
        """Take up the size of what lies behind a namespace, made `size` bytes first if given.

        Returns the new size in bytes. Raises UserError.
        """
        disk = self._find(nsid)
        if size is None:
            size = disk.backend.measure()
        else:
            _check_new_size(disk, size)
            try:
                disk.backend.provide(size)
            except OSError as error:
                raise UserError(f"can't resize namespace {nsid}: {error}") from error
        self._take_size(disk, size)
        return disk.backend.size

    def protect(self, nsid: int, state: Protection) -> None:
        """Change a namespace's write protection, whatever state it is in. Raises UserError."""
        assert self._controller is not None
        disk = self._find(nsid)
        if disk.config.read_only:
            raise UserError(f"namespace {nsid} is served read-only: that can't be changed")
        try:
            self._controller.protect_namespace(nsid, _PROTECTIONS[state])
        except OSError as error:
            raise UserError(f"can't flush namespace {nsid}: {error}") from error
        self._log.info("namespace %d: write protection %s", nsid, state)

    def limit(self, nsid: int, limits: Limits) -> None:
        """Change how much a namespace may do. Raises UserError."""
        disk = self._find(nsid)
        disk.limits = limits
        self._limit(disk)

    def look(self) -> None:
        """Notice files and devices that have another size than before."""
        for disk in self._disks.values():
            try:
                size = disk.backend.measure()
            except OSError as error:
                self._log.debug("namespace %d: %s", disk.namespace.nsid, error)
                continue
            if size != disk.size_told:
                self._take_size(disk, size)

    @property
    def may_change(self) -> bool:
        """Whether any size may change behind our back."""
        return any(disk.config.kind not in ("memory", "null") for disk in self._disks.values())

    def close(self) -> None:
        """Flush and close all back ends; nothing serves them any more. Safe to repeat."""
        while self._disks:
            _, disk = self._disks.popitem()
            try:
                if not disk.config.read_only:
                    disk.backend.flush()
            except OSError as error:
                self._log.error("flushing a namespace failed: %s", error)
            disk.backend.close()

    def __iter__(self) -> Iterator[Disk]:
        return iter(self._disks.values())

    def _open(self, nsid: int, config: NamespaceConfig) -> Disk:
        backend = open_backend(
            config.kind,
            path=config.path,
            size=config.size,
            lba=config.lba,
            read_only=config.read_only,
            timeout=config.timeout,
            key=config.key,
            polled=self._iopoll,
            record=config.record,
        )
        names = self._served.setdefault(nsid, [])
        name = _name(config)
        if name not in names:
            names.append(name)
        namespace = Namespace(
            nsid,
            backend,
            serial=self._serial,
            lba=config.lba,
            read_only=config.read_only,
            succession=names.index(name),
        )
        return Disk(config, backend, namespace, config.limits, backend.size)

    def _limit(self, disk: Disk) -> None:
        assert self._controller is not None
        limits = disk.limits
        self._controller.limit_namespace(disk.namespace.nsid, limits.iops, limits.bps, limits.burst)

    def _find(self, nsid: int) -> Disk:
        disk = self._disks.get(nsid)
        if disk is None:
            there = ", ".join(map(str, sorted(self._disks))) or "none"
            raise UserError(f"there is no namespace {nsid} (there are: {there})")
        return disk

    def _take_size(self, disk: Disk, size: int) -> None:
        """Use `size` bytes in whole blocks; the host is told when that changes anything."""
        assert self._controller is not None
        nsid = disk.namespace.nsid
        disk.size_told = size
        usable = size - size % disk.config.lba
        if usable == 0 and disk.backend.size:
            # A device that is gone says 0 as well; its commands fail by themselves.
            self._log.warning("namespace %d: nothing is left of %s", nsid, _name(disk.config))
            return
        if usable == disk.backend.size:
            return
        try:
            self._controller.resize_namespace(nsid, usable)
        except OSError as error:
            raise UserError(f"can't resize namespace {nsid}: {error}") from error
        self._log.info("namespace %d is %d bytes now", nsid, usable)

    def _status(self, nsid: int) -> NamespaceStatus:
        disk = self._disks[nsid]
        return NamespaceStatus(
            nsid=nsid,
            kind=disk.config.kind,
            path=disk.config.path,
            size=disk.backend.size,
            lba=disk.config.lba,
            read_only=disk.config.read_only,
            write_protect=_NAMES[disk.namespace.protection],
            iops=disk.limits.iops,
            bps=disk.limits.bps,
            burst=disk.limits.burst,
        )


def _name(config: NamespaceConfig) -> str:
    return config.path or f"{config.kind}:{config.size}"


def _check_new_size(disk: Disk, size: int) -> None:
    lba = disk.config.lba
    if size % lba or not 0 < size <= MAX_SIZE:
        raise UserError(f"bad size {size}: give a multiple of the namespace's {lba}-byte LBA")
