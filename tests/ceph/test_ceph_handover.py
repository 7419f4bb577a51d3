"""One disk, two hosts: it moves from server to server, and nothing that was written is lost."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from cluster import Cluster
from disks import MIB, SOCKET, Attach, Disk, MakeDisk, Serve

from shadowbell.driver import CommandError, Load, LoadSpec, LoadStats, Verifier, run_load
from shadowbell.guest import Served
from shadowbell.nvme import Status

SIZE = 16 * MIB


def taking(ceph: Cluster, disk: Disk, *options: str) -> str:
    query = "&".join((f"conf={ceph.conf}", "takeover", *options))
    return f"rbd:{ceph.of(disk.image)}?{query}"


def refused(disk: Disk) -> bool:
    """Whether a read on the old server is answered with Namespace Not Ready, to be tried again."""
    try:
        disk.queue.read(1, 0, 1)
    except CommandError as error:
        return error.status == Status.NAMESPACE_NOT_READY and not error.completion.dnr
    return False


@pytest.mark.parametrize("cache", ["true", "false"])
def test_the_disk_is_handed_over_under_load(
    ceph: Cluster, make_disk: MakeDisk, serve: Serve, attach: Attach, cache: str
) -> None:
    """The old server's cache may hold completed writes: they are flushed before the lock goes."""
    disk = make_disk(SIZE, f"rbd_cache={cache}")
    verifier = Verifier(SIZE // 512, 512)
    load = Load(disk.host, [disk.queue], LoadSpec(pattern="randwrite", depth=16), verifier=verifier)
    results: list[LoadStats] = []
    runner = threading.Thread(target=lambda: results.append(load.run(seconds=60)), daemon=True)
    runner.start()
    time.sleep(0.5)
    second = serve(taking(ceph, disk), "--serial", "second")
    load.stop()
    runner.join(30)
    old = results[0]
    assert old.writes
    assert not old.lost
    assert not old.violations
    assert old.first_error in (0, Status.NAMESPACE_NOT_READY)
    assert refused(disk)

    host = attach(second)
    queue = host.create_queue_pair(64)
    everything = LoadSpec(pattern="read", block_size=1 << 20, depth=4)
    assert run_load(host, [queue], everything, ios=SIZE // MIB, verifier=verifier).clean
    more = LoadSpec(pattern="randrw", depth=16, seed=7)
    assert run_load(host, [queue], more, ios=2000, verifier=verifier).clean
    assert "handed over" in disk.served.log
    assert refused(disk)


def test_there_and_back_again(
    ceph: Cluster, make_disk: MakeDisk, serve: Serve, attach: Attach
) -> None:
    disk = make_disk(SIZE)
    for turn in range(3):
        disk.queue.write(1, turn, bytes([turn]) * 512)
        old = disk
        served = serve(taking(ceph, disk))
        host = attach(served)
        disk = Disk(disk.image, served, host, host.create_queue_pair(8), 512)
        assert refused(old)
        for before in range(turn + 1):
            assert disk.queue.read(1, before, 1) == bytes([before]) * 512


def test_a_server_that_hangs_is_shut_out(
    ceph: Cluster, make_disk: MakeDisk, serve: Serve, attach: Attach
) -> None:
    """The old server is stopped; when it wakes up, the cluster takes nothing of it."""
    disk = make_disk(SIZE)
    disk.queue.write(1, 5, b"old." * 128)
    disk.queue.flush(1)
    os.kill(disk.served.pid, signal.SIGSTOP)
    try:
        second = serve(taking(ceph, disk, "wait=2"))
        queue = attach(second).create_queue_pair(8)
        assert queue.read(1, 5, 1) == b"old." * 128
        queue.write(1, 5, b"new." * 128)
    finally:
        os.kill(disk.served.pid, signal.SIGCONT)
    with pytest.raises(CommandError) as caught:
        disk.queue.write(1, 5, b"late" * 128)
    assert caught.value.status == Status.NAMESPACE_NOT_READY
    assert refused(disk)
    assert queue.read(1, 5, 1) == b"new." * 128


def test_waiting_for_a_server_that_ends(ceph: Cluster, serve: Serve, attach: Attach) -> None:
    ceph.create_image("waited", SIZE)
    name = f"rbd:{ceph.of('waited')}?conf={ceph.conf}"
    with Served([name, "--socket", f"{{folder}}/{SOCKET}"]) as first:
        attach(first).create_queue_pair(8).write(1, 0, b"left" * 128)
        timer = threading.Timer(1, first.stop)
        timer.start()
        second = serve(f"{name}&wait=10")
        timer.join()
        assert attach(second).create_queue_pair(8).read(1, 0, 1) == b"left" * 128
