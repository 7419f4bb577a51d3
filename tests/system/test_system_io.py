"""I/O commands on every back end, through a real socket."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable

import pytest

from serving import Attach, Serve
from shadowbell.driver import CommandError, Host, QueuePair, pointers
from shadowbell.driver.memory import PAGE
from shadowbell.driver.queue_pair import UNREAD
from shadowbell.nvme import IoOpcode, Psdt, ReadWrite, Status, SubmissionEntry

MIB = 1 << 20
BACKENDS = [
    pytest.param(kind, lba, id=f"{kind}-{lba}")
    for kind, lba in itertools.product(("memory", "file"), (512, 4096))
]

Disk = tuple[Host, QueuePair, int]


@pytest.fixture
def any_disk(serve: Serve, attach: Attach) -> Callable[[str, int], Disk]:
    def make(kind: str, lba: int) -> Disk:
        if kind == "memory":
            served = serve(f"memory:64M,lba={lba}")
        else:
            served = serve(f"file:{{folder}}/disk.img,lba={lba}", image=64 * MIB)
        host = attach(served)
        return host, host.create_queue_pair(64), lba

    return make


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize(("kind", "lba"), BACKENDS)
def test_what_is_written_is_read(any_disk: Callable[[str, int], Disk], kind: str, lba: int) -> None:
    _, queue, _ = any_disk(kind, lba)
    for number, blocks in enumerate((1, 2, 7, 8, 9, 64, 128)):
        data = noise(blocks * lba, number)
        queue.write(1, 100 * number, data, fua=bool(number & 1))
        assert queue.read(1, 100 * number, blocks) == data
    queue.flush(1)
    assert queue.read(1, 0, 1) == noise(lba, 0)


@pytest.mark.parametrize(("kind", "lba"), BACKENDS)
def test_compare(any_disk: Callable[[str, int], Disk], kind: str, lba: int) -> None:
    _, queue, _ = any_disk(kind, lba)
    data = noise(5 * lba)
    queue.write(1, 3, data)
    assert queue.compare(1, 3, data)
    assert not queue.compare(1, 3, data[:-1] + bytes([data[-1] ^ 1]))
    assert not queue.compare(1, 4, data)


@pytest.mark.parametrize(("kind", "lba"), BACKENDS)
def test_write_zeroes(any_disk: Callable[[str, int], Disk], kind: str, lba: int) -> None:
    _, queue, _ = any_disk(kind, lba)
    data = noise(64 * lba)
    for deallocate in (False, True):
        queue.write(1, 0, data)
        queue.write_zeroes(1, 10, 20, deallocate=deallocate)
        expected = data[: 10 * lba] + bytes(20 * lba) + data[30 * lba :]
        assert queue.read(1, 0, 64) == expected


@pytest.mark.parametrize(("kind", "lba"), BACKENDS)
def test_dataset_management_deallocates(
    any_disk: Callable[[str, int], Disk], kind: str, lba: int
) -> None:
    host, queue, _ = any_disk(kind, lba)
    data = noise(64 * lba)
    queue.write(1, 0, data)
    queue.dataset_management(1, [(8, 8), (32, 16)])
    read = queue.read(1, 0, 64)
    if host.namespaces[1].identify.dlfeat & 7 == 1:
        expected = bytearray(data)
        expected[8 * lba : 16 * lba] = bytes(8 * lba)
        expected[32 * lba : 48 * lba] = bytes(16 * lba)
        assert read == bytes(expected)
    assert read[: 8 * lba] == data[: 8 * lba]
    assert read[48 * lba :] == data[48 * lba :]
    queue.dataset_management(1, [(number, 1) for number in range(256)])
    queue.write(1, 0, data)
    queue.dataset_management(1, [(0, 64)], deallocate=False)
    assert queue.read(1, 0, 64) == data


@pytest.mark.parametrize(("kind", "lba"), BACKENDS)
def test_verify(any_disk: Callable[[str, int], Disk], kind: str, lba: int) -> None:
    host, queue, _ = any_disk(kind, lba)
    queue.verify(1, 0, 128)
    with pytest.raises(CommandError) as caught:
        queue.verify(1, host.namespaces[1].blocks, 1)
    assert caught.value.status == Status.LBA_OUT_OF_RANGE


@pytest.mark.parametrize("kind", ["memory", "file"])
@pytest.mark.parametrize("sgl", [False, True], ids=["prp", "sgl"])
def test_all_transfer_sizes_and_offsets(
    any_disk: Callable[[str, int], Disk], kind: str, sgl: bool
) -> None:
    host, queue, lba = any_disk(kind, 512)
    queue.sgl = sgl
    largest = min(host.max_transfer, 2 * MIB)
    for number, size in enumerate((512, 3584, 4096, 4608, 8192, 12288, 65536, 262144, largest)):
        for offset in (0, 4, 512, 4092):
            if offset and size == largest:
                continue
            data = noise(size, number)
            queue.write(1, 17, data, offset=offset)
            assert queue.read(1, 17, size // lba, offset=4096 - max(offset, 4)) == data


def test_the_largest_transfer_with_an_offset(any_disk: Callable[[str, int], Disk]) -> None:
    host, queue, lba = any_disk("memory", 512)
    data = noise(host.max_transfer)
    queue.write(1, 0, data, offset=516)
    assert queue.read(1, 0, len(data) // lba, offset=1020) == data


def test_mdts_is_a_mebibyte_or_more_and_enforced(any_disk: Callable[[str, int], Disk]) -> None:
    host, queue, lba = any_disk("memory", 512)
    assert host.max_transfer >= MIB
    with pytest.raises(CommandError) as caught:
        queue.read(1, 0, host.max_transfer // lba + 1)
    assert caught.value.status == Status.INVALID_FIELD_IN_COMMAND


def raw(opcode: IoOpcode, lba: int, blocks: int, nsid: int = 1) -> SubmissionEntry:
    return SubmissionEntry(
        opcode=opcode, nsid=nsid, cdw10=lba & 0xFFFFFFFF, cdw11=lba >> 32, cdw12=blocks - 1
    )


def test_scattered_pages(any_disk: Callable[[str, int], Disk]) -> None:
    host, queue, lba = any_disk("memory", 512)
    pages = [host.arena.allocate(PAGE) for _ in range(40)]
    random.Random(3).shuffle(pages)
    table = host.arena.allocate(2 * PAGE)
    data = noise(len(pages) * PAGE)
    queue.write(1, 0, data)
    sqe = raw(IoOpcode.READ, 0, len(data) // lba)
    entries = [page.iova for page in pages]
    # The list starts 16 entries before the end of its page, so it is continued in the next.
    start = table.iova + PAGE - 16 * 8
    encoded = pointers.encode_prp_list(entries[1:], start)
    table.view[PAGE - 16 * 8 : PAGE - 16 * 8 + len(encoded)] = encoded
    sqe.prp1, sqe.prp2 = entries[0], start
    queue.execute(sqe)
    assert b"".join(bytes(page.view) for page in pages) == data


@pytest.mark.parametrize("per_segment", [0, 1, 3])
def test_scattered_segments(any_disk: Callable[[str, int], Disk], per_segment: int) -> None:
    host, queue, lba = any_disk("file", 512)
    data = noise(64 * lba)
    queue.write(1, 0, data)
    memory, table = host.arena.allocate(4 * len(data)), host.arena.allocate(PAGE)
    sizes = [1, 3, 508, 512, 4096, 5, 7, 11]
    sizes.append(len(data) - sum(sizes))
    parts, places, at = [], [], 3
    for size in sizes:
        parts.append((memory.iova + at, size))
        places.append((at, size))
        at += size + 77
    encoded = pointers.encode_sgl(parts, table.iova, per_segment)
    table.view[: len(encoded) - 16] = encoded[16:]
    sqe = raw(IoOpcode.READ, 0, 64)
    sqe.flags = Psdt.SGL_MPTR_CONTIGUOUS << 6
    sqe.prp1, sqe.prp2 = pointers.inline_pair(encoded[:16])
    queue.execute(sqe)
    assert b"".join(bytes(memory.view[at : at + size]) for at, size in places) == data


ERRORS = [
    pytest.param(raw(IoOpcode.READ, 1 << 40, 1), Status.LBA_OUT_OF_RANGE, id="beyond"),
    pytest.param(raw(IoOpcode.WRITE, (1 << 64) - 1, 2), Status.LBA_OUT_OF_RANGE, id="wrapping"),
    pytest.param(raw(IoOpcode.WRITE_ZEROES, 1 << 33, 1), Status.LBA_OUT_OF_RANGE, id="zeroes"),
    # Base 2.0, section 3.2.1: an NSID up to NN without a namespace is inactive, not invalid.
    pytest.param(raw(IoOpcode.READ, 0, 1, 257), Status.INVALID_NAMESPACE_OR_FORMAT, id="no-nsid"),
    pytest.param(raw(IoOpcode.READ, 0, 1, 9), Status.INVALID_FIELD_IN_COMMAND, id="inactive"),
    pytest.param(raw(IoOpcode.READ, 0, 1, 1 << 20), Status.INVALID_NAMESPACE_OR_FORMAT, id="nsid"),
    pytest.param(raw(IoOpcode.READ, 0, 1, 0), Status.INVALID_NAMESPACE_OR_FORMAT, id="nsid-0"),
    pytest.param(
        SubmissionEntry(opcode=0x7F, nsid=1), Status.INVALID_COMMAND_OPCODE, id="unknown-opcode"
    ),
    pytest.param(
        raw(IoOpcode.WRITE_UNCORRECTABLE, 0, 1), Status.INVALID_COMMAND_OPCODE, id="uncorrectable"
    ),
]


@pytest.mark.parametrize(("sqe", "status"), ERRORS)
def test_wrong_commands_get_their_status(
    any_disk: Callable[[str, int], Disk], sqe: SubmissionEntry, status: Status
) -> None:
    host, queue, _ = any_disk("memory", 512)
    sqe.prp1 = host.arena.iova
    assert queue.execute(sqe, check=False).status == status
    queue.write(1, 0, noise(512))
    assert queue.read(1, 0, 1) == noise(512)


def test_wrong_pointers_get_their_status(any_disk: Callable[[str, int], Disk]) -> None:
    host, queue, _ = any_disk("memory", 512)
    memory = host.arena.allocate(4 * PAGE)
    outside = host.arena.iova + host.arena.size

    def status(prp1: int, prp2: int, blocks: int, flags: int = 0) -> int:
        sqe = raw(IoOpcode.READ, 0, blocks)
        sqe.prp1, sqe.prp2, sqe.flags = prp1, prp2, flags
        return queue.execute(sqe, check=False).status

    assert status(memory.iova, memory.iova + PAGE + 4, 16) == Status.PRP_OFFSET_INVALID
    assert status(memory.iova + 1, 0, 1) in (Status.PRP_OFFSET_INVALID, 0)
    bad = {Status.DATA_TRANSFER_ERROR, Status.INVALID_FIELD_IN_COMMAND}
    assert status(outside, 0, 1) in bad
    assert status(memory.iova, outside, 16) in bad
    assert status(memory.iova, outside, 64) in bad
    assert status((1 << 64) - PAGE, 0, 8) in bad
    sgl = Psdt.SGL_MPTR_CONTIGUOUS << 6
    assert status(memory.iova, 512 | 0x5F << 56, 1, sgl) == Status.SGL_DESCRIPTOR_TYPE_INVALID
    assert status(memory.iova, 256, 1, sgl) == Status.DATA_SGL_LENGTH_INVALID
    assert status(memory.iova, 512, 1, 0xC0) == Status.INVALID_FIELD_IN_COMMAND
    fused = raw(IoOpcode.READ, 0, 1)
    fused.prp1, fused.flags = memory.iova, 1
    assert queue.execute(fused, check=False).status == Status.INVALID_FIELD_IN_COMMAND


def test_read_only_namespace_refuses_writes(serve: Serve, attach: Attach) -> None:
    host = attach(serve("memory:16M,ro"))
    queue = host.create_queue_pair()
    assert queue.read(1, 0, 1) == bytes(512)
    operations: list[Callable[[], None]] = [
        lambda: queue.write(1, 0, bytes(512)),
        lambda: queue.write_zeroes(1, 0, 1),
        lambda: queue.dataset_management(1, [(0, 1)]),
    ]
    for operation in operations:
        with pytest.raises(CommandError) as caught:
            operation()
        assert caught.value.status in (
            Status.NAMESPACE_IS_WRITE_PROTECTED,
            Status.ATTEMPTED_WRITE_TO_READ_ONLY_RANGE,
        )


def test_null_moves_no_data(serve: Serve, attach: Attach) -> None:
    host = attach(serve("null:1T"))
    queue = host.create_queue_pair()
    last = host.namespaces[1].blocks - 8
    queue.write(1, last, noise(4096))
    assert queue.read(1, last, 8) == bytes([UNREAD]) * 4096
    with pytest.raises(CommandError) as caught:
        queue.read(1, last + 1, 8)
    assert caught.value.status == Status.LBA_OUT_OF_RANGE


def test_several_namespaces_are_apart(serve: Serve, attach: Attach) -> None:
    served = serve("{folder}/disk.img", "memory:16M", "memory:16M,lba=4096", image=16 * MIB)
    host = attach(served)
    assert [(n.nsid, n.lba_size) for n in host.namespaces.values()] == [
        (1, 512),
        (2, 512),
        (3, 4096),
    ]
    queue = host.create_queue_pair()
    for nsid in host.namespaces:
        queue.write(nsid, 1, noise(4096, nsid))
    queue.flush(0xFFFFFFFF)
    for nsid in host.namespaces:
        assert queue.read(nsid, 1, 4096 // host.lba_size(nsid)) == noise(4096, nsid)


def test_data_is_in_the_image_after_a_flush(serve: Serve, attach: Attach) -> None:
    served = serve("{folder}/disk.img", image=16 * MIB)
    host = attach(served)
    queue = host.create_queue_pair()
    queue.write(1, 5, noise(1536))
    queue.flush(1)
    with open(served.folder / "disk.img", "rb") as image:
        assert os.pread(image.fileno(), 1536, 5 * 512) == noise(1536)


def test_next_client_sees_the_data(serve: Serve, attach: Attach) -> None:
    served = serve("memory:16M")
    for number in range(5):
        with Host.connect(served.socket("disk.sock")) as host:
            queue = host.create_queue_pair()
            if number:
                assert queue.read(1, 0, 8) == noise(4096, number - 1)
            queue.write(1, 0, noise(4096, number))


def test_fua_and_limited_retry_bits_are_accepted(any_disk: Callable[[str, int], Disk]) -> None:
    host, queue, _ = any_disk("file", 512)
    sqe = raw(IoOpcode.READ, 0, 1)
    sqe.cdw12 |= ReadWrite.FUA | ReadWrite.LR
    sqe.prp1 = host.arena.allocate(PAGE).iova
    assert queue.execute(sqe).status == 0
