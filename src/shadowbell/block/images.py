"""Images that aren't raw, and disks on the web: QEMU or nbdkit serves them to us over NBD.

Their server is a child of ours on a socket that only this user can reach. It is told the format
and never guesses it: a guest can write any header into a raw disk, and a server that believed it
would open whatever file that header names.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from urllib.parse import quote

from shadowbell.errors import UserError
from shadowbell.guest.child import Child, ChildError
from shadowbell.guest.locate import cache_directories

START_SECONDS = 20.0
SO_ACCEPTCON = 1 << 16  # a listening socket's flag in /proc/net/unix
CONNECTIONS = 64  # as many as there are IOThreads

_log = logging.getLogger("shadowbell")


class ImageServer(Child):
    """A child that serves one disk at `uri`. Raises UserError when it can't be started at first."""

    def __init__(self, disk: str, command: Callable[[str], Sequence[str]]) -> None:
        super().__init__("nbd")
        self._disk = disk
        self._command = command
        self._socket = self.folder / "socket"
        self.uri = f"nbd+unix:///?socket={quote(str(self._socket))}"
        try:
            self.start()
        except (OSError, ChildError) as error:
            self.close()
            raise UserError(f"can't serve {disk}: {error}") from error

    def start(self) -> None:
        self._socket.unlink(missing_ok=True)
        self._launch(self._command(str(self._socket)))
        if not self._wait_until(self._listening, START_SECONDS):
            said = self.log.strip().splitlines()
            raise ChildError(said[-1] if said else "its server doesn't start to listen")

    def ensure(self) -> None:
        """Start the child again if it has ended. Raises OSError."""
        if self.exit_code is None:
            return
        _log.error(
            "the server of %s ended (%d), starting it again; what wasn't flushed may be lost",
            self._disk,
            self.exit_code,
        )
        try:
            self.start()
        except ChildError as error:
            raise OSError(str(error)) from error

    def _listening(self) -> bool:
        # A connection would be the one client that some servers take: ask the kernel instead.
        end = f" {self._socket}\n".encode()
        with open("/proc/net/unix", "rb") as table:
            flags = [int(line.split()[3], 16) for line in table if line.endswith(end)]
        return any(each & SO_ACCEPTCON for each in flags)


def serve_image(kind: str, path: str, *, read_only: bool, key: str | None) -> ImageServer:
    """Start the server of an image of `kind` (one of config.py's). Raises UserError."""
    if kind in ("http", "https"):
        return _serve_web(path)
    _check_magic(kind, path)
    program = find_program("qemu-nbd")
    if program is None:
        raise UserError(
            f"{path} is a {kind} image, which QEMU's qemu-nbd has to serve: install it "
            "(Debian: apt-get install qemu-utils), or convert the image: "
            "qemu-img convert -O raw"
        )

    def command(at: str) -> list[str]:
        arguments = [program, "--socket", at, "--persistent", f"--shared={CONNECTIONS}"]
        if read_only:
            arguments.append("--read-only")
        else:
            arguments.append("--discard=unmap")
        file = f"file.driver=file,file.filename={_quoted(path)}"
        if kind == "luks":
            assert key is not None
            arguments += ["--object", f"secret,id=key,file={_quoted(key)}"]
            arguments += ["--image-opts", f"driver=luks,key-secret=key,{file}"]
        else:
            arguments += ["--image-opts", f"driver={kind},{file}"]
        return arguments

    return ImageServer(path, command)


def _serve_web(url: str) -> ImageServer:
    program = find_program("nbdkit")
    if program is None:
        raise UserError(
            f"{url} has to be served by nbdkit: install it with its curl plugin "
            "(Debian: apt-get install nbdkit)"
        )
    return ImageServer(
        url,
        lambda at: [program, "--unix", at, "--foreground", "--readonly", "curl", f"url={url}"],
    )


def find_program(name: str) -> str | None:
    """A program of QEMU's or nbdkit: on PATH, else among what `make qemu` unpacked."""
    if found := shutil.which(name):
        return found
    for folder in cache_directories():
        program = folder / "qemu/bin" / name
        if os.access(program, os.X_OK):
            return str(program)
    return None


def _check_magic(kind: str, path: str) -> None:
    """Raise UserError unless the file begins as an image of this kind does."""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
            file.seek(-min(512, os.fstat(file.fileno()).st_size), os.SEEK_END)
            tail = file.read(512)
    except OSError as error:
        raise UserError(f"can't open {path}: {error.strerror}") from error
    found = _kind_of(head, tail)
    if found != kind:
        what = f"a {found} image" if found else f"no {kind} image"
        raise UserError(
            f"{path} is {what}: write {found or 'file'}:{path}" + ("" if found else " if it is raw")
        )


def _kind_of(head: bytes, tail: bytes) -> str | None:
    if head.startswith(b"QFI\xfb"):
        return "qcow2"
    if head.startswith((b"KDMV", b"COWD")) or head.lstrip().startswith(b"# Disk DescriptorFile"):
        return "vmdk"
    if head.startswith(b"vhdxfile"):
        return "vhdx"
    if head[64:68] == b"\x7f\x10\xda\xbe":
        return "vdi"
    if head.startswith(b"LUKS\xba\xbe"):
        return "luks"
    if head.startswith(b"conectix") or tail.startswith(b"conectix"):
        return "vpc"
    return None


def _quoted(text: str) -> str:
    """A value in QEMU's option lists, where a comma is written twice."""
    return text.replace(",", ",,")
