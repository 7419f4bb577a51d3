"""A vfio-user client: one socket, synchronous requests and posted register writes."""

import array
import contextlib
import mmap
import os
import socket
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from shadowbell.driver import wire
from shadowbell.driver.wire import Command, Flags, IrqSet, Region, WireError
from shadowbell.errors import UserError

MAX_FDS: Final = 16
MINOR: Final = 1


def socket_path(path: str | os.PathLike[str]) -> Path:
    """Return the socket behind ``path``: itself, or ``cntrl`` in that directory (SPDK's way)."""
    where = Path(path)
    return where / "cntrl" if where.is_dir() else where


class Client:
    """A connection to a vfio-user server, negotiated.

    Any thread may call; requests take turns. The socket stays in blocking mode because the
    queues write posted doorbells to it from C: time limits are the kernel's (SO_RCVTIMEO).
    Raises UserError when nobody listens, WireError when the server breaks the protocol, OSError
    with the server's error number when it refuses a request, ConnectionError when it is gone.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 5.0) -> None:
        self._lock = threading.RLock()
        self._next_id = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        limit = struct.pack("ll", int(timeout), int(timeout % 1 * 1_000_000))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        where = socket_path(path)
        try:
            self._socket.connect(str(where))
        except OSError as error:
            self._socket.close()
            raise UserError(
                f"nobody serves {where} ({error.strerror}): start `shadowbell serve` there first"
            ) from error
        try:
            self._negotiate()
        except BaseException:
            self._socket.close()
            raise

    def _negotiate(self) -> None:
        reply, _ = self.request(Command.VERSION, wire.version(0, MINOR, MAX_FDS))
        major, minor, capabilities = wire.decode_version(reply)
        if major != 0 or minor > MINOR:
            raise WireError(f"the server speaks vfio-user {major}.{minor}, this client 0.{MINOR}")
        self.version = (major, minor)
        fds = capabilities.get("max_msg_fds", 1)
        self.max_fds = max(1, min(MAX_FDS, fds)) if isinstance(fds, int) else 1

    def fileno(self) -> int:
        """The socket's descriptor, for posted writes from C."""
        return self._socket.fileno()

    def close(self) -> None:
        """Hang up. The server takes that as the end of every mapping and queue."""
        # A thread in recvmsg() must see the end: close() alone leaves it waiting.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    # --- messages

    def _send(self, data: bytes, fds: Sequence[int]) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            sent = self._socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
            if sent < len(data):
                self._socket.sendall(data[sent:], socket.MSG_NOSIGNAL)
        except BlockingIOError as error:
            raise TimeoutError("the server doesn't read its socket") from error

    def _receive(self, length: int, fds: list[int]) -> bytes:
        parts = bytearray()
        space = socket.CMSG_SPACE(MAX_FDS * 4)
        while len(parts) < length:
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    length - len(parts), space, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError as error:
                raise TimeoutError("the server doesn't answer") from error
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    received = array.array("i")
                    received.frombytes(payload[: len(payload) // 4 * 4])
                    fds.extend(received)
            if flags & socket.MSG_CTRUNC:
                raise WireError("the server sent more descriptors than agreed")
            if not data:
                raise ConnectionResetError("the server closed the connection")
            parts += data
        return bytes(parts)

    def _reply(self, message_id: int, command: int, fds: list[int]) -> bytes:
        while True:
            header = wire.decode_header(self._receive(wire.HEADER.size, fds))
            got_id, got_command, length, flags, error = header
            payload = self._receive(length, fds)
            if flags & Flags.TYPE_MASK == Flags.COMMAND:
                # All our memory is mapped by descriptor; nobody needs to ask us for bytes.
                if not flags & Flags.NO_REPLY:
                    refusal = Flags.REPLY | Flags.ERROR
                    self._send(
                        wire.HEADER.pack(got_id, got_command, wire.HEADER.size, refusal, 95), ()
                    )
                continue
            if (got_id, got_command) != (message_id, command):
                raise WireError(f"reply {got_command}/{got_id} to {command}/{message_id}")
            if flags & Flags.ERROR:
                raise OSError(error, f"{Command(command).name}: {os.strerror(error)}")
            return payload

    def request(
        self, command: Command, payload: bytes = b"", fds: Sequence[int] = ()
    ) -> tuple[bytes, list[int]]:
        """Send a command and wait for its reply: (payload, received descriptors)."""
        received: list[int] = []
        with self._lock:
            self._next_id = (self._next_id + 1) & 0xFFFF
            message_id = self._next_id
            try:
                self._send(wire.encode(command, message_id, payload), fds)
                return self._reply(message_id, command, received), received
            except BaseException:
                for fd in received:
                    os.close(fd)
                raise

    # --- device

    def device_info(self) -> tuple[int, int, int]:
        """Return (flags, number of regions, number of interrupt indices)."""
        info = wire.DEVICE_INFO
        reply, _ = self.request(Command.DEVICE_GET_INFO, info.pack(info.size, 0, 0, 0))
        if len(reply) < info.size:
            raise WireError("the server's device info is too short")
        _, flags, regions, irqs = info.unpack_from(reply)
        return flags, regions, irqs

    def region_info(self, index: int) -> tuple[Region, int | None]:
        """Return a region and the descriptor to map it by (the caller's to close), if any."""
        request = wire.REGION_INFO.pack(4096, 0, index, 0, 0, 0)
        reply, fds = self.request(Command.DEVICE_GET_REGION_INFO, request)
        for extra in fds[1:]:
            os.close(extra)
        return wire.decode_region(reply), fds[0] if fds else None

    def map_region(self, index: int, start: int, length: int) -> tuple[mmap.mmap, int] | None:
        """Map ``[start, start + length)`` of a region: (mapping, offset in it), or None."""
        region, fd = self.region_info(index)
        if fd is None:
            return None
        try:
            for offset, size in region.areas:
                if offset <= start and start + length <= offset + size:
                    mapping = mmap.mmap(fd, size, mmap.MAP_SHARED, offset=region.offset + offset)
                    return mapping, start - offset
            return None
        finally:
            os.close(fd)

    def io_eventfds(self, index: int) -> dict[int, int]:
        """Return {offset in the region: eventfd} as offered now; the caller closes them.

        A server that doesn't know the request offers none.
        """
        request = wire.IO_FDS.pack(65536, 0, index, 0)
        try:
            reply, fds = self.request(Command.DEVICE_GET_REGION_IO_FDS, request)
        except OSError as error:
            if isinstance(error, (ConnectionError, TimeoutError)):
                raise
            return {}
        offered = {}
        try:
            for entry in wire.decode_io_fds(reply, len(fds)):
                if entry.size in (0, 4):
                    offered[entry.offset] = os.dup(fds[entry.fd_index])
        finally:
            for fd in fds:
                os.close(fd)
        return offered

    def irq_count(self, index: int) -> int:
        """Number of vectors of an interrupt index (MSI-X is 2)."""
        info = wire.IRQ_INFO
        reply, _ = self.request(Command.DEVICE_GET_IRQ_INFO, info.pack(info.size, 0, index, 0))
        if len(reply) < info.size:
            raise WireError("the server's irq info is too short")
        count: int = info.unpack_from(reply)[3]
        return count

    def set_irqs(self, index: int, start: int, fds: Sequence[int]) -> None:
        """Give vectors ``start``.. their eventfds, in messages of at most ``max_fds``."""
        flags = IrqSet.DATA_EVENTFD | IrqSet.ACTION_TRIGGER
        for base in range(0, len(fds), self.max_fds):
            chunk = fds[base : base + self.max_fds]
            head = wire.SET_IRQS.pack(wire.SET_IRQS.size, flags, index, start + base, len(chunk))
            self.request(Command.DEVICE_SET_IRQS, head, chunk)

    def disable_irqs(self, index: int) -> None:
        """Take every vector's eventfd away."""
        flags = IrqSet.DATA_NONE | IrqSet.ACTION_TRIGGER
        size = wire.SET_IRQS.size
        self.request(Command.DEVICE_SET_IRQS, wire.SET_IRQS.pack(size, flags, index, 0, 0))

    def reset(self) -> None:
        """DEVICE_RESET."""
        self.request(Command.DEVICE_RESET)

    # --- memory

    def dma_map(self, fd: int, offset: int, iova: int, length: int) -> None:
        """Let the device reach ``length`` bytes of ``fd`` at ``iova``."""
        flags = wire.DmaFlags.READ | wire.DmaFlags.WRITE
        payload = wire.DMA_MAP.pack(wire.DMA_MAP.size, flags, offset, iova, length)
        self.request(Command.DMA_MAP, payload, [fd])

    def dma_unmap(self, iova: int, length: int) -> None:
        """Take a mapping back; when this returns, the device doesn't touch it any more."""
        payload = wire.DMA_UNMAP.pack(wire.DMA_UNMAP.size, 0, iova, length)
        self.request(Command.DMA_UNMAP, payload)

    # --- registers

    def region_read(self, index: int, offset: int, length: int) -> bytes:
        """Read registers; raises WireError when the server returns another length."""
        request = wire.REGION_ACCESS.pack(offset, index, length)
        reply, _ = self.request(Command.REGION_READ, request)
        if len(reply) != wire.REGION_ACCESS.size + length:
            raise WireError(f"the server read {len(reply) - 16} bytes instead of {length}")
        return reply[wire.REGION_ACCESS.size :]

    def region_write(self, index: int, offset: int, data: bytes, *, posted: bool = False) -> None:
        """Write registers; ``posted`` doesn't wait and learns of no error."""
        payload = wire.region_write(offset, index, data)
        if not posted:
            self.request(Command.REGION_WRITE, payload)
            return
        with self._lock:
            self._send(wire.encode(Command.REGION_WRITE, 0, payload, Flags.NO_REPLY), ())
