"""Commands on an RBD image against a bytearray."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from typing import NamedTuple

import pytest
from cluster import Cluster
from disks import MIB, SOCKET, Attach, Disk, MakeDisk, Serve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shadowbell.driver import CommandError, LoadSpec, Verifier, run_load
from shadowbell.guest import Served
from shadowbell.nvme import Status

OBJECT = 256 << 10  # bytes: small, so that many commands touch two objects or more
SIZE = 2 * MIB
LARGEST = 600 << 10


class Step(NamedTuple):
    kind: str
    start: float
    length: float
    seed: int


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


steps = st.builds(
    Step,
    st.sampled_from(("write", "fua", "zero", "free", "discard", "compare", "flush", "read")),
    st.floats(0, 1),
    st.floats(0, 1).map(lambda fraction: fraction**3),  # mostly short, some over three objects
    st.integers(0, 2**16),
)


@pytest.mark.parametrize("lba", [512, 4096])
def test_what_the_image_holds_is_what_was_done(make_disk: MakeDisk, lba: int) -> None:
    disk = make_disk(SIZE, object_size="256K", lba=lba)
    expected = bytearray(SIZE)

    @settings(
        max_examples=100,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(steps, min_size=1, max_size=12))
    def explore(chosen: list[Step]) -> None:
        for step in chosen:
            take(disk, expected, step)
        step_blocks = LARGEST // lba
        for block in range(0, SIZE // lba, step_blocks):
            count = min(step_blocks, SIZE // lba - block)
            read = disk.queue.read(1, block, count)
            assert read == expected[block * lba : (block + count) * lba]

    explore()


def take(disk: Disk, expected: bytearray, step: Step) -> None:
    lba, queue = disk.lba, disk.queue
    blocks = max(1, round(step.length * LARGEST / lba))
    block = round(step.start * (SIZE // lba - blocks))
    where = slice(block * lba, (block + blocks) * lba)
    if step.kind in ("write", "fua"):
        data = noise(blocks * lba, step.seed)
        queue.write(1, block, data, fua=step.kind == "fua", offset=4 * (step.seed & 1023))
        expected[where] = data
    elif step.kind in ("zero", "free"):
        queue.write_zeroes(1, block, blocks, deallocate=step.kind == "free")
        expected[where] = bytes(blocks * lba)
    elif step.kind == "discard":
        queue.dataset_management(1, [(block, blocks)])
        expected[where] = bytes(blocks * lba)
    elif step.kind == "compare":
        data = bytearray(expected[where])
        assert queue.compare(1, block, data)
        data[step.seed % len(data)] ^= 1
        assert not queue.compare(1, block, data)
    elif step.kind == "flush":
        queue.flush(1)
    else:
        assert queue.read(1, block, blocks) == expected[where]


def test_many_commands_at_once_keep_their_data(make_disk: MakeDisk) -> None:
    disk = make_disk(32 * MIB)
    verifier = Verifier(32 * MIB // 512, 512)
    spec = LoadSpec(pattern="randrw", block_size=4096, depth=32)
    stats = run_load(disk.host, [disk.queue], spec, ios=6000, verifier=verifier)
    assert stats.clean
    large = LoadSpec(pattern="randrw", block_size=1 << 20, depth=4, seed=2)
    assert run_load(disk.host, [disk.queue], large, ios=60, verifier=verifier).clean


def test_commands_keep_their_data_where_processors_are_short(make_disk: MakeDisk) -> None:
    """Then completions gather before they wake the IOThread: none may be left behind."""
    disk = make_disk(32 * MIB)
    queue = disk.host.create_queue_pair(64, interrupts=True)
    hogs = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(os.cpu_count() or 1)
    ]
    try:
        verifier = Verifier(32 * MIB // 512, 512)
        for depth in (1, 3, 32):
            spec = LoadSpec(pattern="randrw", depth=depth, block_size=4096, sleep=True)
            assert run_load(disk.host, [queue], spec, seconds=2, verifier=verifier).clean
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def test_the_next_server_reads_what_the_last_one_wrote(ceph: Cluster, attach: Attach) -> None:
    ceph.create_image("turns", 8 * MIB)
    name = f"rbd:{ceph.of('turns')}?conf={ceph.conf}"
    arguments = [name, "--iothreads", "2", "--socket", f"{{folder}}/{SOCKET}"]
    for turn in range(2):
        with Served(arguments) as served:
            queue = attach(served).create_queue_pair(16)
            if turn:
                assert queue.read(1, 100, 64) == noise(64 * 512, turn - 1)
            queue.write(1, 100, noise(64 * 512, turn))
            assert served.stop() == 0


def test_deallocated_objects_are_given_back(ceph: Cluster, make_disk: MakeDisk) -> None:
    disk = make_disk(16 * MIB)
    for start in range(0, 16 * MIB, MIB):
        disk.queue.write(1, start // 512, noise(MIB, start))

    def used() -> int:
        report = json.loads(ceph.rbd("du", "--format", "json", ceph.of(disk.image)))
        return int(report["images"][0]["used_size"])

    assert used() == 16 * MIB
    disk.queue.dataset_management(1, [(0, 8 * MIB // 512)])
    assert used() == 8 * MIB
    disk.queue.write_zeroes(1, 8 * MIB // 512, 4 * MIB // 512, deallocate=True)
    assert used() == 4 * MIB
    disk.queue.write_zeroes(1, 12 * MIB // 512, 4 * MIB // 512)
    assert used() == 4 * MIB  # without deallocation the space is kept
    assert disk.queue.read(1, 12 * MIB // 512, 128) == bytes(128 * 512)


def test_a_snapshot_is_read_only_and_stays_what_it_was(
    ceph: Cluster, make_disk: MakeDisk, serve: Serve, attach: Attach
) -> None:
    disk = make_disk(8 * MIB)
    disk.queue.write(1, 7, noise(4096, 1))
    disk.queue.flush(1)
    ceph.rbd("snap", "create", f"{ceph.of(disk.image)}@then")
    disk.queue.write(1, 7, noise(4096, 2))
    queue = attach(serve(f"rbd:{ceph.of(disk.image)}@then?conf={ceph.conf}")).create_queue_pair(8)
    assert queue.read(1, 7, 8) == noise(4096, 1)
    assert disk.queue.read(1, 7, 8) == noise(4096, 2)
    with pytest.raises(CommandError) as caught:
        queue.write(1, 7, noise(4096, 3))
    assert caught.value.status == Status.NAMESPACE_IS_WRITE_PROTECTED
