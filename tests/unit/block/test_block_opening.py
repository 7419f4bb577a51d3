"""From what a user names to an open back end, and what is refused in one line."""

import fcntl
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from shadowbell.block import Backend, open_backend
from shadowbell.errors import UserError

MIB = 1 << 20

LOCKER = """
import fcntl, os, struct, sys
path, how, kind = sys.argv[1:]
fd = os.open(path, os.O_RDWR)
if how == "flock":
    fcntl.flock(fd, fcntl.LOCK_EX if kind == "write" else fcntl.LOCK_SH)
else:
    kind = fcntl.F_WRLCK if kind == "write" else fcntl.F_RDLCK
    fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", kind, 0, 100, 1, 0))
print("locked", flush=True)
sys.stdin.read()
"""


def image(folder: Path, size: int = MIB) -> str:
    path = folder / "disk.img"
    with path.open("wb") as file:
        file.truncate(size)
    return str(path)


def open_file(path: str, *, lba: int = 512, read_only: bool = False) -> Backend:
    return open_backend("file", path=path, size=None, lba=lba, read_only=read_only)


@pytest.mark.parametrize("how", ["flock", "ofd"])
@pytest.mark.parametrize("theirs", ["read", "write"])
@pytest.mark.parametrize("ours", ["read", "write"])
def test_locks_of_other_processes(tmp_path: Path, how: str, theirs: str, ours: str) -> None:
    path = image(tmp_path)
    command = [sys.executable, "-c", LOCKER, path, how, theirs]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        if theirs == ours == "read":
            open_file(path, read_only=True).close()
        else:
            with pytest.raises(UserError, match="locked"):
                open_file(path, read_only=ours == "read")
        other.communicate()
    open_file(path).close()


def test_our_locks_hold_against_others(tmp_path: Path) -> None:
    path = image(tmp_path)
    backend = open_file(path)
    with pytest.raises(UserError, match="locked"):
        open_file(path)
    with pytest.raises(UserError, match="locked"):
        open_file(path, read_only=True)
    fd = os.open(path, os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    with pytest.raises((BlockingIOError, PermissionError)):
        fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 200, 1, 0))
    os.close(fd)
    backend.close()
    readers = [open_file(path, read_only=True) for _ in range(2)]
    with pytest.raises(UserError, match="locked"):
        open_file(path)
    for reader in readers:
        assert reader.read_only
        reader.close()


@pytest.mark.parametrize("kind", ["memory", "null"])
@pytest.mark.parametrize("size", [0, 1, 511, 513, -512, 1 << 63, 1 << 70])
def test_sizes_that_cant_be(kind: str, size: int) -> None:
    if kind == "null" and size == 1 << 63:
        open_backend(kind, path=None, size=size, lba=512, read_only=False).close()
        return
    with pytest.raises(UserError):
        open_backend(kind, path=None, size=size, lba=512, read_only=False)


@pytest.mark.parametrize("kind", ["memory", "null"])
def test_a_size_is_needed(kind: str) -> None:
    with pytest.raises(UserError, match="size"):
        open_backend(kind, path=None, size=None, lba=512, read_only=False)


@pytest.mark.parametrize(("size", "lba"), [(0, 512), (511, 512), (513, 512), (4096 + 512, 4096)])
def test_images_of_wrong_size(tmp_path: Path, size: int, lba: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UserError, match="bytes"):
        open_file(image(tmp_path, size), lba=lba)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_read_only_back_end_says_so() -> None:
    for kind in ("memory", "null"):
        for read_only in (False, True):
            backend = open_backend(kind, path=None, size=MIB, lba=512, read_only=read_only)
            assert (backend.kind, backend.size, backend.read_only) == (kind, MIB, read_only)
            backend.flush()
            backend.close()
            backend.close()


def test_what_isnt_an_image(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path / "nothing", tmp_path, fifo, Path("/dev/null")):
        for read_only in (False, True):
            with pytest.raises(UserError, match=str(path)):
                open_file(str(path), read_only=read_only)
    with pytest.raises(UserError, match="path"):
        open_backend("file", path=None, size=None, lba=512, read_only=False)


def test_direct_access_where_the_file_system_has_it(tmp_path: Path) -> None:
    path = image(tmp_path)
    backend = open_file(path)
    flags = [
        int(line.split()[1], 8)
        for fd in os.listdir("/proc/self/fd")
        if os.path.realpath(f"/proc/self/fd/{fd}") == path
        for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
        if line.startswith("flags")
    ]
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("no O_DIRECT here")
    assert flags
    assert all(value & os.O_DIRECT for value in flags)
    backend.close()


def test_a_build_without_librbd_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shadowbell.block.rbd", None)
    with pytest.raises(UserError, match="apt-get install librbd-dev"):
        open_backend("rbd", path="vms/disk", size=None, lba=512, read_only=False)


def test_a_recording_needs_a_new_file(tmp_path: Path) -> None:
    log = tmp_path / "disk.log"

    def record(where: Path) -> Backend:
        return open_backend(
            "memory", path=None, size=MIB, lba=512, read_only=False, record=str(where)
        )

    record(log).close()
    with pytest.raises(UserError, match=r"disk\.log exists"):
        record(log)
    with pytest.raises(UserError, match="can't record in"):
        record(tmp_path / "nowhere" / "disk.log")
