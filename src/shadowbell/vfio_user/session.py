"""One client's session: messages in, replies out, no sockets.

The order of a session: VERSION, then anything. Requests are done in the order they come, each is
answered once and with exactly the size its client waits for; a request with NO_REPLY is never
answered, not even when it fails. DMA_READ and DMA_WRITE go from server to client only, and this
server never sends them, so replies that arrive are ignored.

Not implemented: twin sockets, migration (DEVICE_FEATURE, MIG_DATA_*), dirty page bitmaps.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from typing import Protocol

from shadowbell.vfio_user import messages as bodies
from shadowbell.vfio_user import protocol as wire
from shadowbell.vfio_user.interrupts import Interrupts, VectorSink
from shadowbell.vfio_user.protocol import Command, Header, Refused, Region, refuse
from shadowbell.vfio_user.version import Negotiated, negotiate

Reply = tuple[bytes, tuple[int, ...]]
DOORBELLS = (0x1000, 0x1000)
_NO_FDS: tuple[int, ...] = ()


class Device(Protocol):
    """What a session needs of the PCI function. Offsets and sizes in bytes."""

    def region_size(self, region: int) -> int: ...
    def region_read(self, region: int, offset: int, count: int) -> bytes: ...
    def region_write(self, region: int, offset: int, data: bytes) -> None: ...
    def reset(self) -> None: ...
    def irq_counts(self) -> tuple[int, ...]: ...


class Memory(VectorSink, Protocol):
    """What a session needs of the engine; see `shadowbell.dataplane.Engine`."""

    @property
    def doorbell_fd(self) -> int: ...
    def dma_map(self, iova: int, length: int, fd: int | None, offset: int, prot: int) -> None: ...
    def dma_unmap(self, iova: int, length: int) -> None: ...
    def dma_unmap_all(self) -> None: ...
    def region_io_fds(self) -> list[tuple[int, int, int]]:
        """BAR0's ioeventfds now: (offset, size, descriptor). Descriptors stay the engine's."""


class Session:
    """`mapped` offers the doorbell page; `is_private(fd)` tells whether the client maps a file's
    memory privately (then we would see stale data), None when that can't be known."""

    def __init__(
        self,
        device: Device,
        engine: Memory,
        *,
        mapped: bool,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
        is_private: Callable[[int], bool | None] = lambda fd: None,
    ) -> None:
        self._device = device
        self._engine = engine
        self._mapped = mapped
        self._log = log
        self._is_private = is_private
        self._negotiated: Negotiated | None = None
        self._interrupts = Interrupts(engine, device.irq_counts())
        self._maps: set[tuple[int, int]] = set()
        self._memory_judged = False
        self._failed = False
        self._commands: dict[int, Callable[[bytes, list[int]], Reply]] = {
            Command.DMA_MAP: self._dma_map,
            Command.DMA_UNMAP: self._dma_unmap,
            Command.DEVICE_GET_INFO: self._get_info,
            Command.DEVICE_GET_REGION_INFO: self._get_region_info,
            Command.DEVICE_GET_REGION_IO_FDS: self._get_region_io_fds,
            Command.DEVICE_GET_IRQ_INFO: self._get_irq_info,
            Command.DEVICE_SET_IRQS: self._set_irqs,
            Command.REGION_READ: self._region_read,
            Command.REGION_WRITE: self._region_write,
            Command.REGION_WRITE_MULTI: self._region_write_multi,
            Command.DEVICE_RESET: self._reset,
        }

    def handle(self, message: bytes, fds: list[int]) -> Reply | None:
        """Do one whole message (header included); returns the reply and the descriptors to send.

        The session owns `fds` from here on and closes those it doesn't keep. The descriptors of
        the reply stay the engine's. Raises ProtocolError when the stream can't be followed.
        """
        try:
            request = Header.decode(message)
            if request.flags & wire.TYPE_MASK == wire.TYPE_REPLY:
                self._log.debug("ignored a reply to command %d", request.command)
                return None
            reply = self._answer(request, message[wire.HEADER_SIZE :], fds)
        finally:
            for fd in fds:
                os.close(fd)
        return None if request.flags & wire.FLAG_NO_REPLY else reply

    def close(self) -> None:
        """Give back the interrupts' descriptors."""
        self._interrupts.close()

    def _answer(self, request: Header, body: bytes, fds: list[int]) -> Reply:
        try:
            answer, out = self._dispatch(request, body, fds)
        except Refused as refused:
            self._log.debug("command %d refused: %s", request.command, refused.reason)
            return wire.encode_error(request, refused.errno), _NO_FDS
        except OSError as error:
            # Once is news, a thousand times is a client that fills the log.
            level = logging.DEBUG if self._failed else logging.WARNING
            self._failed = True
            self._log.log(level, "command %d failed: %s", request.command, error)
            return wire.encode_error(request, error.errno or errno.EIO), _NO_FDS
        return wire.encode_reply(request, answer), out

    def _dispatch(self, request: Header, body: bytes, fds: list[int]) -> Reply:
        if request.flags & wire.TYPE_MASK != wire.TYPE_COMMAND:
            refuse(f"message type {request.flags & wire.TYPE_MASK}")
        if request.command == Command.VERSION:
            if self._negotiated is not None:
                refuse("VERSION twice")
            self._negotiated, answer = negotiate(body)
            return answer, _NO_FDS
        if self._negotiated is None:
            refuse("VERSION must come first")
        command = self._commands.get(request.command)
        if command is None:
            refuse("unknown or unsupported", errno.EOPNOTSUPP)
        return command(body, fds)

    def _dma_map(self, body: bytes, fds: list[int]) -> Reply:
        entry = bodies.DmaMap.decode(body)
        if len(fds) > 1:
            refuse(f"DMA_MAP carries {len(fds)} descriptors")
        if len(self._maps) >= wire.MAX_DMA_MAPS:
            refuse(f"more than {wire.MAX_DMA_MAPS} DMA maps", errno.ENOSPC)
        fd = fds[0] if fds else None
        try:
            self._engine.dma_map(entry.address, entry.size, fd, entry.offset, entry.prot)
        except ValueError as error:
            # The entry's own values are fine, so that it must be in another's way.
            refuse(f"DMA_MAP of {entry.size:#x} at {entry.address:#x}: {error}", errno.EEXIST)
        self._maps.add((entry.address, entry.size))
        self._judge_memory(entry, fd)
        return b"", _NO_FDS

    def _judge_memory(self, entry: bodies.DmaMap, fd: int | None) -> None:
        """Say once when the guest's memory isn't shared with us.

        The first writeable map tells: clients map the guest's memory before anything else. Maps
        without a descriptor that come later are other devices' memory, read-only ones are ROMs.
        """
        if self._memory_judged or not entry.prot & wire.DMA_WRITEABLE:
            if fd is None:
                self._log.debug(
                    "map of %#x bytes at %#x has no descriptor", entry.size, entry.address
                )
            return
        self._memory_judged = True
        remedy = "give the VM its memory with -object memory-backend-memfd,id=mem,size=...,share=on"
        if fd is None:
            self._log.warning("the guest's memory comes without a descriptor: %s", remedy)
        elif self._is_private(fd):
            self._log.warning("the client maps its memory privately, not shared: %s", remedy)

    def _dma_unmap(self, body: bytes, fds: list[int]) -> Reply:
        entry = bodies.DmaUnmap.decode(body)
        if entry.all:
            self._engine.dma_unmap_all()
            self._maps.clear()
        else:
            try:
                self._engine.dma_unmap(entry.address, entry.size)
            except ValueError as error:
                refuse(f"DMA_UNMAP of {entry.size:#x} at {entry.address:#x}: {error}", errno.ENOENT)
            self._forget(entry)
        return entry.encode_reply(body), _NO_FDS

    def _forget(self, entry: bodies.DmaUnmap) -> None:
        if (entry.address, entry.size) in self._maps:
            self._maps.remove((entry.address, entry.size))
            return
        # A range may take several maps with it, as with the kernel's VFIO.
        end = entry.address + entry.size
        self._maps = {
            (start, size)
            for start, size in self._maps
            if start < entry.address or start + size > end
        }

    def _get_info(self, body: bytes, fds: list[int]) -> Reply:
        bodies.decode_device_info(body)
        return bodies.encode_device_info(), _NO_FDS

    def _get_region_info(self, body: bytes, fds: list[int]) -> Reply:
        request = bodies.RegionInfoRequest.decode(body)
        size = self._device.region_size(request.index)
        if not self._mapped or request.index != Region.BAR0:
            info = bodies.encode_region_info(request.index, size, argsz=bodies.REGION_INFO_SIZE)
            return info, _NO_FDS
        needed = bodies.REGION_INFO_SIZE + bodies.SPARSE_MMAP_SIZE
        if request.argsz < needed:
            # No MMAP flag without the descriptor; argsz tells the client to ask again.
            return bodies.encode_region_info(request.index, size, argsz=needed), _NO_FDS
        info = bodies.encode_mappable_region_info(request.index, size, DOORBELLS)
        return info, (self._engine.doorbell_fd,)

    def _get_region_io_fds(self, body: bytes, fds: list[int]) -> Reply:
        request = bodies.RegionIoFdsRequest.decode(body)
        offered = self._engine.region_io_fds() if request.index == Region.BAR0 else []
        send: list[int] = []
        areas: list[tuple[int, int, int]] = []
        room = self._negotiated.max_msg_fds if self._negotiated else 0
        for offset, size, fd in offered:
            if fd not in send:
                if len(send) == room:
                    continue
                send.append(fd)
            areas.append((offset, size, send.index(fd)))
        if request.argsz < bodies.region_io_fds_size(len(areas)):
            return bodies.encode_region_io_fds(request.index, [], count=len(areas)), _NO_FDS
        return bodies.encode_region_io_fds(request.index, areas, count=len(areas)), tuple(send)

    def _get_irq_info(self, body: bytes, fds: list[int]) -> Reply:
        index = bodies.decode_irq_info(body)
        return bodies.encode_irq_info(index, self._interrupts.limits[index]), _NO_FDS

    def _set_irqs(self, body: bytes, fds: list[int]) -> Reply:
        self._interrupts.set(bodies.IrqSet.decode(body, self._interrupts.limits), fds)
        return b"", _NO_FDS

    def _check_range(self, access: bodies.Access) -> None:
        size = self._device.region_size(access.region) if access.region < wire.NUM_REGIONS else 0
        if access.offset + access.count > size:
            refuse(f"access to {access.offset:#x}+{access.count:#x} of region {access.region}")

    def _region_read(self, body: bytes, fds: list[int]) -> Reply:
        access = bodies.Access.decode(body)
        self._check_range(access)
        data = self._device.region_read(access.region, access.offset, access.count)
        return access.encode_reply(data), _NO_FDS

    def _region_write(self, body: bytes, fds: list[int]) -> Reply:
        access = bodies.Access.decode(body)
        self._check_range(access)
        self._device.region_write(access.region, access.offset, access.data(body))
        return access.encode_reply(), _NO_FDS

    def _region_write_multi(self, body: bytes, fds: list[int]) -> Reply:
        completed = 0
        for access, data in bodies.decode_write_multi(body):
            try:
                self._check_range(access)
            except Refused:
                break
            self._device.region_write(access.region, access.offset, data)
            completed += 1
        return bodies.encode_write_multi(completed), _NO_FDS

    def _reset(self, body: bytes, fds: list[int]) -> Reply:
        self._device.reset()
        return b"", _NO_FDS
