"""What a user reads who names an image that can't be served."""

from __future__ import annotations

import time

import pytest
from cluster import Cluster
from disks import MIB, SOCKET, Attach, MakeDisk, Serve

from shadowbell.guest import Served, ServeError


def refusal(name: str, *options: str) -> str:
    """The one line with which `serve` ends."""
    started = time.monotonic()
    served = Served([name, *options, "--socket", f"{{folder}}/{SOCKET}"])
    try:
        with pytest.raises(ServeError):
            served.start()
        said = served.log.strip()
    finally:
        served.close()
    assert time.monotonic() - started < 15
    assert "\n" not in said
    assert said.startswith("shadowbell: error: ")
    return said


def test_no_such_image(ceph: Cluster) -> None:
    said = refusal(f"rbd:{ceph.POOL}/nothing?conf={ceph.conf}")
    assert f"rbd create --size 10G {ceph.POOL}/nothing" in said


def test_no_such_pool(ceph: Cluster) -> None:
    assert "ceph osd pool create nowhere" in refusal(f"rbd:nowhere/disk?conf={ceph.conf}")


def test_no_conf() -> None:
    assert "?conf=PATH" in refusal("rbd:disks/disk?conf=/nonexistent/ceph.conf")


def test_no_such_user(ceph: Cluster) -> None:
    said = refusal(f"rbd:{ceph.POOL}/disk?conf={ceph.conf}&id=stranger")
    assert "client.stranger" in said
    assert "keyring=" in said


def test_nobody_answers(ceph: Cluster) -> None:
    elsewhere = "mon_host=[v2:127.0.0.1:9/0]"
    said = refusal(f"rbd:{ceph.POOL}/disk?conf={ceph.conf}&connect=2&{elsewhere}")
    assert "no monitor of the Ceph cluster answered within 2 s" in said


def test_an_option_that_ceph_does_not_have(ceph: Cluster) -> None:
    assert "rbd_cash=true" in refusal(f"rbd:{ceph.POOL}/disk?conf={ceph.conf}&rbd_cash=true")


def test_a_user_who_may_only_read(ceph: Cluster, serve: Serve, attach: Attach) -> None:
    ceph.create_image("shared", 4 * MIB)
    keyring = ceph.add_user("reader", "mon", "profile rbd", "osd", "profile rbd-read-only")
    name = f"rbd:{ceph.of('shared')}?conf={ceph.conf}&id=reader&keyring={keyring}"
    assert "--read-only" in refusal(name)
    assert attach(serve(name, "--read-only")).create_queue_pair(4).read(1, 0, 1) == bytes(512)


def test_an_image_without_a_lock(ceph: Cluster, serve: Serve, attach: Attach) -> None:
    ceph.create_image("plain", 4 * MIB, "layering")
    name = f"rbd:{ceph.of('plain')}?conf={ceph.conf}"
    assert f"rbd feature enable {ceph.of('plain')} exclusive-lock" in refusal(name)
    queue = attach(serve(f"{name}&lock=none")).create_queue_pair(4)
    queue.write(1, 0, b"a" * 512)
    assert queue.read(1, 0, 1) == b"a" * 512


def test_an_image_that_is_served_already(
    ceph: Cluster, make_disk: MakeDisk, serve: Serve, attach: Attach
) -> None:
    disk = make_disk(4 * MIB)
    name = f"rbd:{ceph.of(disk.image)}?conf={ceph.conf}"
    said = refusal(name)
    assert "takeover" in said
    disk.queue.write(1, 0, b"mine" * 128)
    assert attach(serve(name, "--read-only")).create_queue_pair(4).read(1, 0, 1) == b"mine" * 128
