"""Reads and writes of the same block from several queues and IOThreads: no block is ever torn.

NVM Command Set 1.0, 2.1.4.1: a write of up to AWUN is atomic beside other reads and writes,
and AWUN can't say less than one logical block.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from serving import Attach, Serve
from shadowbell.block.file import direct_alignment
from shadowbell.driver import Buffer, Host, QueuePair
from shadowbell.nvme import IoOpcode, ReadWrite, SubmissionEntry

DEPTH = 64
BATCHES = 200
MIB = 1 << 20


def submit_all(
    queue: QueuePair, opcode: IoOpcode, buffer: Buffer, size: int, lbas: Sequence[int], bits: int
) -> None:
    blocks = size // queue.lba_size(1)
    for number, lba in enumerate(lbas):
        sqe = SubmissionEntry(
            opcode=opcode,
            nsid=1,
            cdw10=lba,
            cdw12=blocks - 1 | bits,
            prp1=buffer.iova + number * 4096,
        )
        queue.submit(sqe, ring=False)


def batch(host: Host, queues: list[QueuePair], buffers: list[Buffer], size: int, first: int) -> int:
    """Write and read two places from all queues at once; how many reads saw a mix of two writes."""
    writers = [(queues[0], buffers[0]), (queues[2], buffers[2])]
    readers = [(queues[1], buffers[1]), (queues[3], buffers[3])]
    blocks = size // host.lba_size(1)
    lbas = [number % 2 * blocks for number in range(DEPTH)]
    for which, (queue, buffer) in enumerate(writers):
        for number in range(DEPTH):
            word = struct.pack("<Q", (first + number) * 2 + which)
            buffer.view[number * 4096 : number * 4096 + size] = word * (size // 8)
        submit_all(queue, IoOpcode.WRITE, buffer, size, lbas, ReadWrite.FUA if first % 128 else 0)
    for queue, buffer in readers:
        submit_all(queue, IoOpcode.READ, buffer, size, lbas, 0)
    for queue in queues:
        queue.ring.ring()
    left = len(queues) * DEPTH
    while left:
        for queue in queues:
            done = queue.poll()
            assert not any(completion.status for completion in done)
            left -= len(done)
    torn = 0
    for _, buffer in readers:
        for number in range(DEPTH):
            data = bytes(buffer.view[number * 4096 : number * 4096 + size])
            torn += data != data[:8] * (size // 8)
    return torn


def torn_reads(host: Host, size: int) -> int:
    queues = [host.create_queue_pair(2 * DEPTH) for _ in range(4)]
    buffers = [host.arena.allocate(DEPTH * 4096) for _ in queues]
    queues[0].write_zeroes(1, 0, 128)
    torn = sum(batch(host, queues, buffers, size, n * DEPTH) for n in range(BATCHES))
    for buffer in buffers:
        buffer.free()
    return torn


def direct(folder: Path) -> bool:
    """Whether the kernel says how files here are read without its page cache."""
    image = folder / "probe"
    image.write_bytes(bytes(4096))
    with image.open("rb") as file:
        return direct_alignment(file.fileno())[1] > 0


@pytest.mark.parametrize("lba", [512, 4096])
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_no_block_is_torn(
    serve: Serve, attach: Attach, tmp_path: Path, kind: str, lba: int
) -> None:
    if kind == "file" and not direct(tmp_path):
        pytest.skip("without O_DIRECT the kernel tears blocks: docs/storage.md")
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    disk = "memory:16M" if kind == "memory" else f"file:{image}"
    host = attach(serve(f"{disk},lba={lba}", "--iothreads", "2"))
    assert (host.controller.awun, host.controller.awupf, host.controller.acwu) == (0, 0, 0)
    assert torn_reads(host, lba) == 0
