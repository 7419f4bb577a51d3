"""Writes an initramfs: a cpio archive (newc format) of files, folders, links and device nodes."""

from __future__ import annotations

import stat
from io import BytesIO
from pathlib import Path


class Initramfs:
    """Collects entries; parents are made on the way. Owner is root, times are 0: reproducible."""

    def __init__(self) -> None:
        self._out = BytesIO()
        self._seen: set[str] = set()

    def file(self, name: str, data: bytes, mode: int = 0o755) -> None:
        self._entry(name, stat.S_IFREG | mode, data)

    def copy(self, name: str, source: Path) -> None:
        self.file(name, source.read_bytes())

    def link(self, name: str, target: str) -> None:
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def folder(self, name: str) -> None:
        self._entry(name, stat.S_IFDIR | 0o755, b"")

    def device(self, name: str, major: int, minor: int) -> None:
        self._entry(name, stat.S_IFCHR | 0o600, b"", major, minor)

    def finish(self) -> bytes:
        self._write("TRAILER!!!", 0, b"")
        return self._out.getvalue()

    def _entry(self, name: str, mode: int, data: bytes, major: int = 0, minor: int = 0) -> None:
        if name in self._seen:
            return
        if (parent := str(Path(name).parent)) != ".":
            self.folder(parent)
        self._seen.add(name)
        self._write(name, mode, data, major, minor)

    def _write(self, name: str, mode: int, data: bytes, major: int = 0, minor: int = 0) -> None:
        # Fields: inode, mode, uid, gid, links, mtime, size, device, rdev, name size, checksum.
        encoded = name.encode() + b"\0"
        numbers = (
            len(self._seen),
            mode,
            0,
            0,
            1,
            0,
            len(data),
            0,
            0,
            major,
            minor,
            len(encoded),
            0,
        )
        self._out.write(b"070701" + b"".join(b"%08X" % number for number in numbers))
        for part in (encoded, data):
            self._out.write(part)
            self._out.write(b"\0" * (-self._out.tell() % 4))
