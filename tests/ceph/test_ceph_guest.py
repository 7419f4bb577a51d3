"""A Linux guest on an RBD image."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from cluster import Cluster
from disks import MIB

from shadowbell.guest import Guest, Served, available, disk
from shadowbell.guest.demonstration import find_namespace
from shadowbell.guest.fio import run_fio, verify

SIZE = 64 * MIB
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def guest(ceph: Cluster) -> Iterator[Guest]:
    reason = available()
    if reason is not None and os.environ.get("CI"):
        pytest.exit(f"CI needs the guest tests: {reason}", returncode=1)
    if reason is not None:
        pytest.skip(reason)
    ceph.create_image("guest", SIZE)
    name = f"rbd:{ceph.of('guest')}?conf={ceph.conf}"
    with (
        Served([name, "--socket", "{folder}/disk.sock", "--serial", "ceph"]) as served,
        Guest([disk(served.socket("disk.sock"))], cpus=2) as guest,
    ):
        yield guest
        served.check_alive()


def test_random_writes_verify(guest: Guest) -> None:
    result = verify(guest, find_namespace(guest, "ceph"), size="4M")
    assert result.total_bytes >= 8 * MIB


def test_large_and_odd_transfers_verify(guest: Guest) -> None:
    run_fio(
        guest,
        find_namespace(guest, "ceph"),
        "--rw=write --bsrange=512-2M --blockalign=512 --iodepth=8 --size=32M"
        " --verify=crc32c --verify_fatal=1 --verify_state_save=0",
    )


def test_the_guest_sees_a_resized_image(ceph: Cluster, guest: Guest) -> None:
    device = find_namespace(guest, "ceph")
    assert int(guest.check(f"blockdev --getsize64 {device}")) == SIZE
    ceph.rbd("resize", "--size", f"{2 * SIZE}B", ceph.of("guest"))
    deadline = time.monotonic() + 60
    while int(guest.check(f"blockdev --getsize64 {device}")) != 2 * SIZE:
        assert time.monotonic() < deadline, "the guest didn't see the new size"
        time.sleep(0.2)
    guest.check(
        f"yes new | head -c 1048576 >/tmp/new;"
        f" dd if=/tmp/new of={device} bs=1M seek=127 oflag=direct conv=notrunc;"
        f" dd if={device} bs=1M skip=127 count=1 iflag=direct | cmp - /tmp/new"
    )
