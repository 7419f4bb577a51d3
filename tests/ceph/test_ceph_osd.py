"""OSDs go and come back under load: the host sees a pause, or is told to try again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import pytest
from cluster import Cluster
from disks import MIB, SOCKET, MakeDisk

from shadowbell.driver import CommandError, Load, LoadSpec, LoadStats, Verifier, run_load
from shadowbell.nvme import Status

T = TypeVar("T")


def test_an_osd_stopped_and_started_under_load(ceph: Cluster, make_disk: MakeDisk) -> None:
    disk = make_disk(32 * MIB, "timeout=60")
    queue = disk.host.create_queue_pair(64, interrupts=True)
    verifier = Verifier(32 * MIB // 512, 512)
    spec = LoadSpec(pattern="randrw", depth=16, sleep=True)
    load = Load(disk.host, [queue], spec, verifier=verifier)
    results: list[LoadStats] = []
    runner = threading.Thread(
        target=lambda: results.append(load.run(seconds=100, stall=60)), daemon=True
    )

    def await_commands() -> None:
        before = disk.served.ledger(SOCKET).commands
        ceph.await_true(lambda: disk.served.ledger(SOCKET).commands > before + 200, "I/O to go on")

    runner.start()
    try:
        await_commands()
        ceph.kill_osd(0)
        ceph.await_true(lambda: 0 not in ceph.osds_up(), "the monitor to notice")
        await_commands()
    finally:
        ceph.start_osd(0)
    await_commands()
    load.stop()
    runner.join(60)
    assert results
    assert results[0].clean
    assert results[0].writes
    # What the OSD missed it has got since, or gets when it is read.
    everything = LoadSpec(pattern="read", block_size=1 << 20, depth=4)
    assert run_load(disk.host, [disk.queue], everything, ios=32, verifier=verifier).clean


def test_commands_that_get_no_answer_are_to_be_tried_again(
    ceph: Cluster, make_disk: MakeDisk
) -> None:
    disk = make_disk(4 * MIB, "timeout=2")
    disk.queue.write(1, 0, b"kept" * 128)
    for number in range(ceph.osds):
        ceph.kill_osd(number)
    try:
        for command in (
            lambda: disk.queue.read(1, 0, 1),
            lambda: disk.queue.write(1, 1, b"lost" * 128),
        ):
            with pytest.raises(CommandError) as caught:
                command()
            assert caught.value.status == Status.NAMESPACE_NOT_READY
            assert not caught.value.completion.dnr
    finally:
        for number in range(ceph.osds):
            ceph.start_osd(number)
    assert tried(lambda: disk.queue.read(1, 0, 1)) == b"kept" * 128
    tried(lambda: disk.queue.write(1, 1, b"new." * 128))
    assert disk.queue.read(1, 1, 1) == b"new." * 128


def tried(command: Callable[[], T]) -> T:
    """As a host does it: again while the namespace isn't ready."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return command()
        except CommandError as error:
            if error.status != Status.NAMESPACE_NOT_READY or time.monotonic() > deadline:
                raise
