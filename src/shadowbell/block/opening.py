"""From what a user names to an open back end."""

import contextlib
import fcntl
import os
import stat
import struct
import time
from pathlib import Path
from typing import Any

from shadowbell.block.backend import Backend
from shadowbell.block.file import FileBackend, direct_alignment, in_memory
from shadowbell.block.memory import MemoryBackend
from shadowbell.block.nbd_opening import open_nbd
from shadowbell.block.null import NullBackend
from shadowbell.block.nvme_device import identify_device
from shadowbell.block.passthrough import PassthroughBackend
from shadowbell.block.rbd_opening import open_rbd
from shadowbell.block.record import RecordingBackend
from shadowbell.block.rings import probe_polled
from shadowbell.block.tmpfs import TmpfsBackend
from shadowbell.config import SIZED_KINDS
from shadowbell.errors import UserError

F_OFD_SETLK = 37  # Linux; in the fcntl module from Python 3.14 on
BLKGETSIZE64 = 0x80081272
LOCK_SECONDS = 2


def open_backend(
    kind: str,
    *,
    path: str | None,
    size: int | None,
    lba: int,
    read_only: bool,
    timeout: float = 0,
    key: str | None = None,
    polled: bool = False,
    record: str | None = None,
) -> Backend:
    """Open a back end of one of the kinds that ``NamespaceConfig`` has; the fields are as there.

    ``size`` is in bytes and belongs to ``memory`` and ``null``; ``path`` to the others. ``lba`` is
    the logical block size in bytes. A file is locked: against writers, and for a writer against
    everybody else, as is an RBD image that is written. ``polled``: the IOThreads have ``iopoll``,
    and a file must be one that can be polled. ``record``: a new
    file to log every change in. Raises ``UserError``.
    """
    if record is not None:
        return _open_recorded(
            kind, record, path=path, size=size, lba=lba, read_only=read_only, polled=polled
        )
    if kind not in SIZED_KINDS:
        if path is None:
            raise UserError(f"a {kind} namespace needs a path: {kind}:...")
        if kind == "file":
            return _open_file(path, lba, read_only, polled)
        if kind == "nbd":
            return open_nbd(path, lba=lba, read_only=read_only, timeout=timeout)
        if kind == "rbd":
            return open_rbd(path, lba=lba, read_only=read_only)
        return _open_image(kind, path, lba, read_only, timeout, key)
    if size is None:
        raise UserError(f"a {kind} namespace needs a size, for example {kind}:1G")
    _check_size(f"{kind} namespace", size, lba)
    try:
        made = MemoryBackend if kind == "memory" else NullBackend
        return made(size, read_only=read_only)
    except (OSError, OverflowError) as error:
        raise UserError(f"can't reserve {size} bytes of memory for a disk: {error}") from error


def _open_image(
    kind: str, path: str, lba: int, read_only: bool, timeout: float, key: str | None
) -> Backend:
    from shadowbell.block.images import serve_image

    server = serve_image(kind, path, read_only=read_only, key=key)
    try:
        return open_nbd(
            server.uri, lba=lba, read_only=read_only, timeout=timeout, name=path, server=server
        )
    except BaseException:
        server.close()
        raise


def _open_recorded(kind: str, record: str, *, lba: int, **options: Any) -> Backend:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
    inner = open_backend(kind, lba=lba, **options)
    try:
        return RecordingBackend(inner, os.open(record, flags, 0o666), lba)
    except FileExistsError as error:
        inner.close()
        raise UserError(f"{record} exists: a recording needs a new file") from error
    except OSError as error:
        inner.close()
        raise UserError(f"can't record in {record}: {error.strerror}") from error


def _open_file(path: str, lba: int, read_only: bool, polled: bool) -> Backend:
    access = os.O_RDONLY if read_only else os.O_RDWR
    fd = _open(path, access)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISCHR(mode):
            return _open_nvme_device(fd, path, lba, read_only, polled)
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise UserError(f"{path} is neither a file nor a block device")
        _lock(fd, path, shared=read_only)
        size = os.lseek(fd, 0, os.SEEK_END)
        _check_size(path, size, lba)
        if not polled and in_memory(fd):
            return TmpfsBackend(fd, size, read_only=read_only)
        memory, length = _go_direct(fd, lba)
        if polled:
            _check_polled(fd, path, length)
        return FileBackend(
            fd,
            size,
            memory_align=memory,
            length_align=length,
            read_only=read_only,
            discards=stat.S_ISBLK(mode) and not _has_write_zeroes(fd),
            polled=polled,
        )
    except BaseException:
        os.close(fd)
        raise


def _open_nvme_device(fd: int, path: str, lba: int, read_only: bool, polled: bool) -> Backend:
    try:
        device = identify_device(fd)
    except OSError as error:
        raise UserError(f"{path} is neither a file nor a block device") from error
    if device.metadata:
        raise UserError(
            f"{path} has {device.metadata} bytes of metadata a block: format it without"
        )
    if 1 << device.lba_shift > lba:
        raise UserError(f"{path} has blocks of {1 << device.lba_shift} bytes: add lba=4096")
    if polled:
        raise UserError(f"{path} can't be polled: commands are passed to it; leave --iopoll out")
    _lock(fd, path, shared=read_only)
    _check_size(path, device.size, lba)
    return PassthroughBackend(
        fd,
        device.size,
        nsid=device.nsid,
        lba_shift=device.lba_shift,
        max_transfer=device.max_transfer,
        zeroes=device.zeroes,
        deallocates=device.deallocates,
        reads_zeroes=device.reads_zeroes,
        read_only=read_only,
    )


def _open(path: str, access: int) -> int:
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode):
            raise UserError(f"{path} is neither a file nor a block device")
        return os.open(path, access | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} doesn't exist; make it with: truncate -s 10G {Path(path)}"
        ) from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder, not a disk image") from error
    except OSError as error:
        hint = "; --read-only serves it without writing" if access == os.O_RDWR else ""
        raise UserError(f"can't open {path}: {error.strerror}{hint}") from error


def _check_size(what: str, size: int, lba: int) -> None:
    if size < lba:
        raise UserError(f"{what} is {size} bytes, less than one block of {lba} bytes")
    if size % lba:
        raise UserError(
            f"{what} is {size} bytes, no multiple of its {lba}-byte blocks; "
            f"make it {size - size % lba + lba} with truncate, or choose another lba"
        )


def _lock(fd: int, path: str, *, shared: bool) -> None:
    """Take both kinds of lock people use: flock(1)'s, and QEMU's open file description lock.

    A server that was killed keeps them until the kernel has ended the requests it had under way, so
    one that is started in its place waits a little.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    while not _try_lock(fd, path, shared=shared):
        if time.monotonic() > deadline:
            raise UserError(
                f"{path} is locked by another process; stop what uses it, or serve it --read-only "
                "from both"
            )
        time.sleep(0.02)


def _try_lock(fd: int, path: str, *, shared: bool) -> bool:
    flock = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    record = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    request = struct.pack("hhqqi4x", record, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.flock(fd, flock | fcntl.LOCK_NB)
        fcntl.fcntl(fd, F_OFD_SETLK, request)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise UserError(f"can't lock {path}: {error.strerror}") from error
    return True


def _has_write_zeroes(fd: int) -> bool:
    """Does a block device zero by a command of its own? Punching a hole in it is that command."""
    device = os.fstat(fd).st_rdev
    folder = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    for queue in (folder / "queue", folder / ".." / "queue"):  # a partition's is its disk's
        with contextlib.suppress(OSError, ValueError):
            return int((queue / "write_zeroes_max_bytes").read_text()) > 0
    return False


def _check_polled(fd: int, path: str, length: int) -> None:
    if length == 1:
        raise UserError(f"{path} can't be polled: it has no O_DIRECT; leave --iopoll out")
    if error := probe_polled(fd, max(length, 4096)):
        raise UserError(
            f"{path} can't be polled ({os.strerror(error)}): its device has no polling queues "
            "(for NVMe: nvme.poll_queues=1 on the kernel's command line); leave --iopoll out"
        )


def _go_direct(fd: int, lba: int) -> tuple[int, int]:
    """Turn O_DIRECT on where offsets of whole blocks suit it; return what it asks in bytes.

    That is the alignment of addresses and of lengths, 1 and 1 when access goes through the cache.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    with contextlib.suppress(OSError):  # the file system has no O_DIRECT: go through the cache
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        memory, offset = direct_alignment(fd)
        if not offset:
            # Before Linux 6.1 nobody tells; 512 suits all but 4K-native disks, so ask by reading.
            memory = offset = next((n for n in (512, 4096) if _reads_direct(fd, n)), lba + 1)
        if offset <= lba:
            return memory, offset
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    return 1, 1


def _reads_direct(fd: int, size: int) -> bool:
    import mmap

    with mmap.mmap(-1, 4096) as page:
        try:
            os.preadv(fd, [memoryview(page)[:size]], 0)
        except OSError:
            return False
        return True
