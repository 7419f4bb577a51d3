"""NVMe commands for a generic character device, and what is read of its Identify pages.

No such device is here: the commands are looked at instead of sent.
"""

import errno
import os
from pathlib import Path

import pytest

from shadowbell.block import open_backend
from shadowbell.block.nvme_device import describe, identify_device
from shadowbell.block.passthrough import FUA, OPS, UNMAP, command_for, status_meaning
from shadowbell.errors import UserError
from shadowbell.nvme.identify_controller import IdentifyController, Oncs
from shadowbell.nvme.identify_namespace import IdentifyNamespace

KIB = 1024
PAGE = 4096
LIMIT = 124 * PAGE


def test_read_of_one_piece() -> None:
    """NVM Command Set 1.0, 3.2.4: SLBA in dwords 10 and 11, NLB from 0 in dword 12."""
    offset = (5 << 32 | 7) * 512
    assert command_for(
        OPS["read"], nsid=3, offset=offset, length=8 * KIB, pieces=[(0x10000, 8 * KIB)]
    ) == (False, 0x02, 3, 0x10000, 8 * KIB, 7, 5, 15, 8 * KIB)


def test_blocks_are_the_devices_own() -> None:
    vectored, opcode, _, _, length, low, _, bits, _ = command_for(
        OPS["write"], lba_shift=12, offset=PAGE * 9, length=PAGE * 2, pieces=[(PAGE, PAGE * 2)]
    )
    assert (vectored, opcode, length, low, bits) == (False, 0x01, PAGE * 2, 9, 1)


@pytest.mark.parametrize(("op", "fua"), [("write", True), ("zero", True), ("read", False)])
def test_only_what_writes_has_fua(op: str, fua: bool) -> None:
    command = command_for(OPS[op], length=PAGE, flags=FUA, pieces=[(PAGE, PAGE)])
    assert bool(command[7] & 1 << 30) == fua


def test_several_pieces_are_a_vector() -> None:
    pieces = [(PAGE, PAGE), (PAGE * 5, PAGE), (PAGE * 9, PAGE)]
    vectored, _, _, _, count, _, _, bits, size = command_for(
        OPS["read"], length=3 * PAGE, pieces=pieces
    )
    assert (vectored, count, bits, size) == (True, 3, 23, 3 * PAGE)


@pytest.mark.parametrize(("mdts", "limit"), [(0, LIMIT), (128 * KIB, 128 * KIB), (8 << 20, LIMIT)])
def test_large_transfers_are_split(mdts: int, limit: int) -> None:
    """By MDTS, and by the pieces that the kernel's driver takes."""
    done, parts = 0, []
    while done < 1024 * KIB:
        command = command_for(
            OPS["write"],
            max_transfer=mdts,
            offset=PAGE,
            length=1024 * KIB,
            done=done,
            pieces=[(1 << 30, 1024 * KIB)],
        )
        address, length, low, size = command[3], command[4], command[5], command[8]
        assert (address, length, low) == ((1 << 30) + done, size, (PAGE + done) // 512)
        assert command[7] == size // 512 - 1
        parts.append(size)
        done += size
    assert max(parts) == limit
    assert sum(parts) == 1024 * KIB


def test_flush() -> None:
    assert command_for(OPS["flush"], nsid=2) == (False, 0, 2, 0, 0, 0, 0, 0, 0)


def test_write_zeroes() -> None:
    """NLB has 16 bits: larger ranges are several commands."""
    command = command_for(OPS["zero"], offset=512, length=65537 * 512, flags=UNMAP)
    assert command[1:] == (0x08, 1, 0, 0, 1, 0, 0xFFFF | 1 << 25, 65536 * 512)
    command = command_for(OPS["zero"], offset=512, length=65537 * 512, done=65536 * 512)
    assert command[5:] == (65537, 0, 0, 512)


def test_zeros_are_written_where_the_device_has_no_write_zeroes() -> None:
    command = command_for(OPS["zero"], offset=0, length=1 << 20, flags=FUA, zeroes=False)
    assert (command[1], command[4], command[8]) == (0x01, LIMIT, LIMIT)
    assert command[3] != 0
    assert command[7] == LIMIT // 512 - 1 | 1 << 30


def test_discard_is_one_range() -> None:
    """Dataset Management: the number of ranges from 0 in dword 10, AD in dword 11."""
    command = command_for(OPS["discard"], offset=1 << 40, length=1 << 30)
    assert command == (False, 0x09, 1, (0, 1 << 21, 1 << 31), 16, 0, 4, 0, 1 << 30)


@pytest.mark.parametrize(
    ("res", "error"),
    [
        (0, 0),
        (-errno.ENODEV, errno.ENODEV),
        (0x0001, errno.EOPNOTSUPP),
        (0x4002, errno.EOPNOTSUPP),
        (0x0081, errno.ENOSPC),
        (0x4020, errno.EROFS),
        (0x0182, errno.EROFS),
        (0x0281, errno.EIO),
        (0x0006, errno.EIO),
    ],
)
def test_what_a_status_means(res: int, error: int) -> None:
    assert status_meaning(res) == -error


def test_what_identify_says() -> None:
    namespace, controller = IdentifyNamespace(), IdentifyController()
    namespace.nsze = 1000
    namespace.flbas = 1
    namespace.lbaf[1].lbads = 12
    namespace.lbaf[1].ms = 8
    namespace.dlfeat = 0b1001
    controller.mdts = 5
    controller.oncs = Oncs.DATASET_MANAGEMENT
    found = describe(4, bytes(namespace), bytes(controller))
    assert (found.nsid, found.size, found.lba_shift, found.metadata) == (4, 1000 * PAGE, 12, 8)
    assert (found.max_transfer, found.zeroes, found.deallocates) == (128 * KIB, False, True)
    assert found.reads_zeroes


def test_other_character_devices_are_none() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(OSError, match="ioctl"):
        identify_device(fd)
    os.close(fd)
    with pytest.raises(UserError, match="neither"):
        open_backend("file", path="/dev/null", size=None, lba=512, read_only=False)


@pytest.mark.parametrize("path", sorted(Path("/dev").glob("ng*n*")), ids=str)
def test_a_device_of_this_machine_is_identified(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    assert identify_device(fd).size > 0
    os.close(fd)
