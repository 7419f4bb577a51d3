"""Disks that come, grow and go while the guest runs, without a reboot or a rescan by hand."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shadowbell.cli.control import ask
from shadowbell.guest import Guest, Served
from shadowbell.guest.demonstration import find_namespace
from shadowbell.manage.control import AddNamespace, RemoveNamespace, Resize, WriteProtect

MIB = 1 << 20


@pytest.fixture
def socket(served: Served) -> str:
    return str(served.socket("shadow"))


def wait(guest: Guest, condition: str) -> None:
    """Until the guest finds a shell condition true."""
    guest.check(f"for i in $(seq 150); do {condition} && exit 0; sleep 0.1; done; exit 1")


def size_is(device: str, size: int) -> str:
    return f"[ $(cat /sys/class/block/{Path(device).name}/size) = {size // 512} ]"


@contextmanager
def added(guest: Guest, socket: str, spec: str) -> Iterator[tuple[int, str]]:
    """A namespace that comes, with its identifier and its device in the guest, and goes."""
    nsid = ask(socket, AddNamespace(spec))
    wait(guest, f"grep -qx {nsid} /sys/class/nvme/nvme*/nvme*n*/nsid")
    device = find_namespace(guest, "shadow", nsid)
    wait(guest, f"[ -b {device} ]")
    yield nsid, device
    ask(socket, RemoveNamespace(nsid))
    wait(guest, f"[ ! -e {device} ]")


@pytest.fixture
def busy(guest: Guest) -> Iterator[None]:
    """Another namespace of the same controller is written and verified meanwhile."""
    device = find_namespace(guest, "shadow", 1)
    guest.check(
        "rm -f /tmp/stop /tmp/failed; head -c 1048576 /dev/urandom >/tmp/noise;"
        " (while [ ! -e /tmp/stop ]; do"
        f" dd if=/tmp/noise of={device} bs=64k oflag=direct 2>/dev/null &&"
        f" dd if={device} bs=64k count=16 iflag=direct 2>/dev/null | cmp - /tmp/noise"
        " || { echo failed >/tmp/failed; break; }; echo round; done >/tmp/rounds 2>&1;"
        " touch /tmp/ended) &"
    )
    yield
    guest.check(
        "touch /tmp/stop; for i in $(seq 300); do [ -e /tmp/ended ] && break; sleep 0.1; done;"
        " rm /tmp/ended; [ ! -e /tmp/failed ] && grep -q round /tmp/rounds"
    )


def test_a_file_comes_grows_shrinks_and_goes(
    guest: Guest, busy: None, socket: str, tmp_path: Path
) -> None:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, 32 * MIB)
    with added(guest, socket, str(path)) as (_, device):
        wait(guest, size_is(device, 32 * MIB))
        for size in (96 * MIB, 64 * MIB):
            os.truncate(path, size)  # noticed by itself
            wait(guest, size_is(device, size))
        guest.check(
            f"yes x | head -c 4096 | dd of={device} bs=4096 seek={64 * MIB // 4096 - 1}"
            " oflag=direct iflag=fullblock"
        )
    assert path.read_bytes()[-4096:] == b"x\n" * 2048


def test_memory_grows_and_is_protected(guest: Guest, busy: None, socket: str) -> None:
    with added(guest, socket, "memory:32M") as (nsid, device):
        ask(socket, Resize(nsid, 64 * MIB))
        wait(guest, size_is(device, 64 * MIB))
        guest.check(f"dd if=/dev/zero of={device} bs=1M seek=32 count=32 oflag=direct")
        ask(socket, WriteProtect(nsid, "protect"))
        wait(guest, f"[ $(blockdev --getro {device}) = 1 ]")
        code, _ = guest.run(f"dd if=/dev/zero of={device} bs=4096 count=1 oflag=direct")
        assert code != 0
        ask(socket, WriteProtect(nsid, "none"))
        wait(guest, f"[ $(blockdev --getro {device}) = 0 ]")
        guest.check(f"dd if=/dev/zero of={device} bs=4096 count=1 oflag=direct")
