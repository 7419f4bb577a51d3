"""I/O commands and their statuses (NVM Command Set 1.0, section 3.2)."""

import random
import struct

import pytest
from dataplane_host import (
    COMPARE,
    DEAC,
    DNR,
    DSM,
    FLUSH,
    FUA,
    MIB,
    PAGE,
    READ,
    VERIFY,
    WRITE,
    WRITE_ZEROES,
    Host,
    Queue,
    sqe,
)

from shadowbell.block import open_backend
from shadowbell.nvme.status import Status

BLOCKS = 8 * MIB // 512
AD = 4


def write(host: Host, queue: Queue, lba: int, data: bytes) -> None:
    buffer = host.take(len(data))
    host.write(buffer, data)
    prp1, prp2 = host.prps(buffer, len(data))
    assert queue.run(sqe(WRITE, lba=lba, blocks=len(data) // 512, prp1=prp1, prp2=prp2)).status == 0


def read(host: Host, queue: Queue, lba: int, length: int) -> bytes:
    buffer = host.take(length)
    prp1, prp2 = host.prps(buffer, length)
    assert queue.run(sqe(READ, lba=lba, blocks=length // 512, prp1=prp1, prp2=prp2)).status == 0
    return host.read(buffer, length)


def ranges(host: Host, *parts: tuple[int, int]) -> int:
    where = host.take(PAGE)
    for i, (lba, blocks) in enumerate(parts):
        host.write(where + 16 * i, struct.pack("<IIQ", 0, blocks, lba))
    return where


def test_what_is_written_is_read(host: Host, disk: Queue) -> None:
    data = random.Random(1).randbytes(MIB)
    write(host, disk, 100, data)
    assert read(host, disk, 100, MIB) == data
    ledger = host.ledger(1)
    assert ledger.bytes_written == ledger.bytes_read == MIB
    assert ledger.commands == {"write": 1, "read": 1}
    assert ledger.errors == 0


def test_a_completion_names_its_command(host: Host, disk: Queue) -> None:
    completion = disk.run(sqe(FLUSH, cid=0xBEEF))
    assert completion == (0xBEEF, 0, 1, 1, 0)


@pytest.mark.parametrize("opcode", [READ, WRITE, COMPARE, WRITE_ZEROES, VERIFY])
@pytest.mark.parametrize(
    ("lba", "blocks"),
    [(BLOCKS, 1), (BLOCKS - 1, 2), ((1 << 64) - 1, 1), ((1 << 64) - 1, 2), (1 << 55, 1)],
)
def test_blocks_beyond_the_end(host: Host, disk: Queue, opcode: int, lba: int, blocks: int) -> None:
    done = disk.run(sqe(opcode, lba=lba, blocks=blocks, prp1=host.take(PAGE)))
    assert done.status == Status.LBA_OUT_OF_RANGE | DNR
    (event,) = host.events("io-error")
    assert (event.qid, event.nsid, event.lba) == (1, 1, lba)
    assert event.status & ~DNR == Status.LBA_OUT_OF_RANGE


@pytest.mark.parametrize("opcode", [READ, WRITE, COMPARE, WRITE_ZEROES, VERIFY])
def test_the_last_block_is_there(host: Host, disk: Queue, opcode: int) -> None:
    assert disk.run(sqe(opcode, lba=BLOCKS - 1, prp1=host.take(PAGE))).status == 0


@pytest.mark.parametrize("opcode", [0x03, 0x04, 0x0D, 0x0E, 0x11, 0x19, 0x7F, 0x80, 0xFF])
def test_opcodes_that_we_dont_know(host: Host, disk: Queue, opcode: int) -> None:
    assert disk.run(sqe(opcode)).status == Status.INVALID_COMMAND_OPCODE | DNR
    assert host.ledger(1).commands == {"other": 1}


@pytest.mark.parametrize("opcode", [FLUSH, READ, WRITE, COMPARE, WRITE_ZEROES, DSM, VERIFY])
@pytest.mark.parametrize("nsid", [0, 257, 0xFFFFFFFE, 0xFFFFFFFF])
def test_namespaces_that_cant_be(host: Host, disk: Queue, opcode: int, nsid: int) -> None:
    status = disk.run(sqe(opcode, nsid=nsid, prp1=host.take(PAGE))).status
    if opcode == FLUSH and nsid == 0xFFFFFFFF:
        assert status == 0
    else:
        assert status == Status.INVALID_NAMESPACE_OR_FORMAT | DNR


@pytest.mark.parametrize("opcode", [FLUSH, READ, WRITE, COMPARE, WRITE_ZEROES, DSM, VERIFY])
def test_an_inactive_namespace(host: Host, disk: Queue, opcode: int) -> None:
    done = disk.run(sqe(opcode, nsid=2, prp1=host.take(PAGE)))
    assert done.status == Status.INVALID_FIELD_IN_COMMAND | DNR


@pytest.mark.parametrize("fuse", [1, 2, 3])
def test_fused_operations_are_refused(host: Host, disk: Queue, fuse: int) -> None:
    done = disk.run(sqe(READ, flags=fuse, prp1=host.take(PAGE)))
    assert done.status == Status.INVALID_FIELD_IN_COMMAND | DNR


@pytest.mark.parametrize("opcode", [READ, WRITE, COMPARE])
def test_transfers_beyond_mdts(host: Host, disk: Queue, opcode: int) -> None:
    prp1, prp2 = host.prps(host.take(MIB + PAGE), MIB + 512)
    done = disk.run(sqe(opcode, blocks=2049, prp1=prp1, prp2=prp2))
    assert done.status == Status.INVALID_FIELD_IN_COMMAND | DNR


@pytest.mark.parametrize("opcode", [WRITE_ZEROES, VERIFY])
def test_commands_without_data_have_no_mdts(host: Host, disk: Queue, opcode: int) -> None:
    write(host, disk, BLOCKS - 1, b"x" * 512)
    assert disk.run(sqe(opcode, blocks=BLOCKS)).status == 0
    expected = b"\0" if opcode == WRITE_ZEROES else b"x"
    assert read(host, disk, BLOCKS - 1, 512) == expected * 512


def test_compare(host: Host, disk: Queue) -> None:
    data = random.Random(2).randbytes(64 * 1024)
    write(host, disk, 7, data)
    buffer = host.take(len(data) + PAGE) + 0x204
    prp1, prp2 = host.prps(buffer, len(data))
    command = sqe(COMPARE, lba=7, blocks=128, prp1=prp1, prp2=prp2)
    host.write(buffer, data)
    assert disk.run(command).status == 0
    for at in (0, 1, 4095, 30000, len(data) - 1):
        host.write(buffer + at, bytes([data[at] ^ 1]))
        assert disk.run(command).code == Status.COMPARE_FAILURE
        host.write(buffer + at, bytes([data[at]]))
    assert disk.run(command).status == 0
    assert host.ledger(1).media_errors == 0


def test_compare_looks_at_every_piece_of_the_longest_list(host: Host, disk: Queue) -> None:
    """512 pieces, as many as a command may have: the last counts too."""
    pieces = 512
    area = host.take(pieces * 1024)
    segment = host.take(16 * pieces)
    for i in range(pieces):
        host.write(segment + 16 * i, struct.pack("<QI4x", area + 1024 * i, 512))
    host.write(area, b"a" * 512 * pieces * 2)
    data = b"a" * 512 * pieces
    write(host, disk, 0, data)
    pointer = int.from_bytes(struct.pack("<I3xB", 16 * pieces, 0x30), "little")
    command = sqe(COMPARE, blocks=pieces, flags=0x40, prp1=segment, prp2=pointer)
    assert disk.run(command).status == 0
    host.write(area + 1024 * (pieces - 1) + 511, b"b")
    assert disk.run(command).code == Status.COMPARE_FAILURE


def test_write_zeroes(host: Host, disk: Queue) -> None:
    for bits in (0, FUA, DEAC, FUA | DEAC):
        for lba, blocks in ((0, 1), (3, 5), (1, 1000), (17, 300)):
            write(host, disk, 0, b"x" * 1002 * 512)
            assert disk.run(sqe(WRITE_ZEROES, lba=lba, blocks=blocks, cdw12=bits)).status == 0
            expected = bytearray(b"x" * 1002 * 512)
            expected[lba * 512 : (lba + blocks) * 512] = bytes(blocks * 512)
            assert read(host, disk, 0, 1002 * 512) == expected
            host.used -= 2 * 1002 * 512 + 4 * PAGE


def test_deallocate(host: Host, disk: Queue) -> None:
    data = bytearray(b"x" * 100 * 512)
    write(host, disk, 0, bytes(data))
    parts = [(1, 2), (10, 0), (20, 30), (99, 1)]
    where = ranges(host, *parts)
    assert disk.run(sqe(DSM, prp1=where, cdw10=3, cdw11=AD)).status == 0
    for lba, blocks in parts:
        data[512 * lba : 512 * (lba + blocks)] = bytes(512 * blocks)
    assert read(host, disk, 0, 100 * 512) == data


def test_256_ranges(host: Host, disk: Queue) -> None:
    write(host, disk, 0, b"x" * 512 * 512)
    where = ranges(host, *[(2 * i, 1) for i in range(256)])
    assert disk.run(sqe(DSM, prp1=where, cdw10=255, cdw11=AD)).status == 0
    assert read(host, disk, 0, 512 * 512) == (bytes(512) + b"x" * 512) * 256


def test_hints_leave_the_data(host: Host, disk: Queue) -> None:
    write(host, disk, 0, b"x" * 512)
    where = ranges(host, (0, 1))
    for attributes in (0, 1, 2, 3):
        assert disk.run(sqe(DSM, prp1=where, cdw10=0, cdw11=attributes)).status == 0
    assert read(host, disk, 0, 512) == b"x" * 512


@pytest.mark.parametrize(
    "part", [(BLOCKS, 1), (BLOCKS + 1, 0), (BLOCKS - 1, 2), (0, 0xFFFFFFFF), ((1 << 64) - 1, 1)]
)
def test_ranges_beyond_the_end_do_nothing(host: Host, disk: Queue, part: tuple[int, int]) -> None:
    write(host, disk, 0, b"x" * 512)
    where = ranges(host, (0, 1), part)
    done = disk.run(sqe(DSM, prp1=where, cdw10=1, cdw11=AD))
    assert done.status == Status.LBA_OUT_OF_RANGE | DNR
    assert read(host, disk, 0, 512) == b"x" * 512


def test_ranges_that_arent_mapped(host: Host, disk: Queue) -> None:
    done = disk.run(sqe(DSM, prp1=1 << 40, cdw10=0, cdw11=AD))
    assert done.status == Status.DATA_TRANSFER_ERROR


@pytest.mark.parametrize("opcode", [WRITE, WRITE_ZEROES, DSM])
def test_a_read_only_namespace(host: Host, opcode: int) -> None:
    backend = open_backend("memory", path=None, size=MIB, lba=512, read_only=True)
    assert backend.read_only
    host.attach(backend)
    queue = host.queue(1)
    done = queue.run(sqe(opcode, prp1=host.take(PAGE)))
    assert done.status == Status.NAMESPACE_IS_WRITE_PROTECTED | DNR
    for harmless in (READ, COMPARE, VERIFY, FLUSH):
        assert queue.run(sqe(harmless, prp1=host.take(PAGE))).status == 0
    host.engine.close()
    backend.close()


def test_flush_of_all_namespaces(host: Host, disk: Queue) -> None:
    second = host.attach_memory(nsid=200, lba=4096)
    assert disk.run(sqe(FLUSH, nsid=0xFFFFFFFF)).status == 0
    host.engine.detach_namespace(200)
    host.engine.detach_namespace(1)
    assert disk.run(sqe(FLUSH, nsid=0xFFFFFFFF)).status == 0
    second.close()


def test_namespaces_come_and_go(host: Host, disk: Queue) -> None:
    second = host.attach_memory(nsid=2, lba=4096)
    with pytest.raises(ValueError, match="2"):
        host.engine.attach_namespace(2, second, 12, False)
    for nsid in (0, 257, 1 << 30, -1):
        with pytest.raises(ValueError, match="attached"):
            host.engine.attach_namespace(nsid, second, 12, False)
        with pytest.raises(ValueError, match="attached"):
            host.engine.detach_namespace(nsid)
    buffer = host.take(PAGE)
    assert disk.run(sqe(READ, nsid=2, lba=8 * MIB // 4096 - 1, prp1=buffer)).status == 0
    host.engine.detach_namespace(2)
    done = disk.run(sqe(READ, nsid=2, prp1=buffer))
    assert done.code == Status.INVALID_FIELD_IN_COMMAND
    second.close()


def test_the_write_cache_off_makes_writes_durable(host: Host, disk: Queue) -> None:
    host.engine.set_write_cache(False)
    write(host, disk, 0, b"x" * 512)
    host.engine.set_write_cache(True)
    host.engine.flush_all()
    assert read(host, disk, 0, 512) == b"x" * 512


@pytest.mark.parametrize("cq_entries", [2, 3, 5, 64, 251])
@pytest.mark.parametrize("burst", [1, 4, 5, 31, 63])
def test_bursts_complete_in_order_wherever_the_completion_queue_wraps(
    host: Host, cq_entries: int, burst: int
) -> None:
    host.attach_memory()
    queue = host.queue(1, entries=64, cq_entries=cq_entries)
    buffer = host.take(PAGE)
    for lap in range(6):
        cids = [lap * burst + i for i in range(burst)]
        queue.submit(*(sqe(READ, cid=cid, lba=cid, prp1=buffer) for cid in cids))
        done = queue.drain(burst)
        assert [completion.cid for completion in done] == cids
        assert all(completion.status == 0 for completion in done)
    assert host.ledger(1).commands == {"read": 6 * burst}


def test_a_long_command_does_not_hold_back_the_completions_before_it(host: Host) -> None:
    host.attach_memory(64 * MIB)
    queue = host.queue(1)
    first = sqe(READ, cid=1, prp1=host.take(PAGE))
    long = [sqe(VERIFY, cid=2 + i, blocks=65536) for i in range(6)]
    queue.submit(first, *long)
    while queue.peek() is None:
        pass
    second = host.read(queue.cq + 16, 16)
    assert not second[14] & 1, "both came at once"
    assert [completion.cid for completion in queue.drain(7)] == list(range(1, 8))
