"""A file that fails on demand: a FUSE file system of one file, served from this process.

Speaks the kernel's protocol (linux/fuse.h, version 7.31) at /dev/fuse; needs root to mount.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from enum import IntEnum
from pathlib import Path

ROOT, FILE = 1, 2
NAME = "disk.img"
FOREVER = 1 << 30
DIRECTORY_MODE, FILE_MODE = 0o040755, 0o100600


class Op(IntEnum):
    """The requests that are answered or known to need no answer."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43


OPERATIONS = {Op.READ: "read", Op.WRITE: "write", Op.FSYNC: "flush", Op.FALLOCATE: "zero"}
WITHOUT_REPLY = (Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT)
DIRECT_IO = 1
MNT_DETACH = 2
MAX_WRITE = 1 << 20


def available() -> str | None:
    """None when such a file can be made here, else why not."""
    if os.geteuid() != 0:
        return "mounting needs root"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"no FUSE: {error}"
    return None


class FailingFile:
    """A file of zeros at `path`; `errors` maps read, write, flush or zero to an errno."""

    def __init__(self, folder: Path, size: int) -> None:
        self.path = folder / NAME
        self.errors: dict[str, int] = {}
        self.data = bytearray(size)
        self._folder = folder
        self._fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self._libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self._fuse},rootmode=40000,user_id=0,group_id=0"
        if self._libc.mount(b"shadowbell", bytes(folder), b"fuse", 0, options.encode()):
            os.close(self._fuse)
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._libc.umount2(bytes(self._folder), MNT_DETACH)
        self._thread.join(10)
        os.close(self._fuse)

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._fuse, MAX_WRITE + 65536)
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    return
                if error.errno in (errno.ENOENT, errno.EINTR):  # interrupted before it was read
                    continue
                raise
            _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
            if opcode in WITHOUT_REPLY:
                continue
            try:
                answer, code = self._answer(opcode, node, request[40:]), 0
            except OSError as error:
                answer, code = b"", error.errno or errno.EIO
            try:
                os.write(self._fuse, struct.pack("<IiQ", 16 + len(answer), -code, unique) + answer)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENODEV):
                    raise

    def _answer(self, opcode: int, node: int, body: bytes) -> bytes:
        if code := self.errors.get(OPERATIONS.get(opcode, ""), 0):
            raise OSError(code, "as was asked for")
        match opcode:
            case Op.INIT:
                return struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 16, 12, MAX_WRITE, 1, 256, 0, 0)
            case Op.LOOKUP:
                if body.rstrip(b"\0").decode() != NAME:
                    raise OSError(errno.ENOENT, "no such file")
                return struct.pack("<QQQQII", FILE, 0, FOREVER, FOREVER, 0, 0) + self._attr(FILE)
            case Op.GETATTR | Op.SETATTR:
                return struct.pack("<QII", FOREVER, 0, 0) + self._attr(node)
            case Op.OPEN:
                return struct.pack("<QII", 0, DIRECT_IO, 0)
            case Op.READ:
                _, offset, size = struct.unpack_from("<QQI", body)
                return bytes(self.data[offset : offset + size])
            case Op.WRITE:
                _, offset, size = struct.unpack_from("<QQI", body)
                self.data[offset : offset + size] = body[40 : 40 + size]
                return struct.pack("<II", size, 0)
            case Op.FALLOCATE:
                _, offset, length = struct.unpack_from("<QQQ", body)
                self.data[offset : offset + length] = bytes(length)
                return b""
            case Op.RELEASE | Op.FSYNC | Op.FLUSH | Op.DESTROY:
                return b""
        raise OSError(errno.ENOSYS, "not served")

    def _attr(self, node: int) -> bytes:
        size, mode = (0, DIRECTORY_MODE) if node == ROOT else (len(self.data), FILE_MODE)
        return struct.pack(
            "<QQQQQQIIIIIIIIII",
            *(node, size, size // 512, 0, 0, 0, 0, 0, 0),
            *(mode, 1, 0, 0, 0, 4096, 0),
        )
