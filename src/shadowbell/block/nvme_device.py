"""What an NVMe generic character device (/dev/ng0n1) says of its namespace."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import struct
from dataclasses import dataclass

from shadowbell.nvme.identify_controller import IdentifyController, Oncs
from shadowbell.nvme.identify_namespace import Dlfeat, IdentifyNamespace

# linux/nvme_ioctl.h
NVME_IOCTL_ID = 0x4E40
NVME_IOCTL_ADMIN_CMD = 0xC0484E41
NVME_IOCTL_IO_CMD = 0xC0484E43
PASSTHRU_COMMAND = "<BBHIIIQQIIIIIIIIII"

FLUSH, IDENTIFY = 0x00, 0x06
CNS_NAMESPACE, CNS_CONTROLLER = 0, 1


@dataclass(frozen=True, kw_only=True)
class NvmeNamespace:
    """A device's namespace; `max_transfer` in bytes, 0 without a limit."""

    nsid: int
    blocks: int
    lba_shift: int
    metadata: int
    """Bytes of metadata beside each block."""
    max_transfer: int
    zeroes: bool
    deallocates: bool
    reads_zeroes: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return self.blocks << self.lba_shift


def identify_device(fd: int) -> NvmeNamespace:
    """Ask an open device what it is. OSError when it is no NVMe generic character device."""
    nsid = fcntl.ioctl(fd, NVME_IOCTL_ID)
    return describe(nsid, _identify(fd, nsid, CNS_NAMESPACE), _identify(fd, 0, CNS_CONTROLLER))


def describe(nsid: int, namespace: bytes, controller: bytes) -> NvmeNamespace:
    """The namespace that two Identify pages of 4096 bytes describe."""
    ns, ctrl = IdentifyNamespace(namespace), IdentifyController(controller)
    lba_format = ns.lbaf[ns.flbas & 0xF | (ns.flbas >> 5 & 3) << 4]  # Base 2.0, figure 280
    return NvmeNamespace(
        nsid=nsid,
        blocks=ns.nsze,
        lba_shift=lba_format.lbads,
        metadata=lba_format.ms,
        max_transfer=4096 << ctrl.mdts if ctrl.mdts else 0,  # CAP.MPSMIN is 4 KiB in what exists
        zeroes=bool(ctrl.oncs & Oncs.WRITE_ZEROES),
        deallocates=bool(ctrl.oncs & Oncs.DATASET_MANAGEMENT),
        reads_zeroes=ns.dlfeat & 7 == Dlfeat.READS_ZEROES,
    )


def flush_device(fd: int, nsid: int) -> None:
    """Send Flush and wait for it. Raises OSError."""
    _command(fd, NVME_IOCTL_IO_CMD, FLUSH, nsid)


def _identify(fd: int, nsid: int, cns: int) -> bytes:
    page = ctypes.create_string_buffer(4096)
    _command(fd, NVME_IOCTL_ADMIN_CMD, IDENTIFY, nsid, page, cdw10=cns)
    return page.raw


def _command(
    fd: int,
    request: int,
    opcode: int,
    nsid: int,
    data: ctypes.Array[ctypes.c_char] | None = None,
    cdw10: int = 0,
) -> None:
    address, length = (ctypes.addressof(data), len(data)) if data is not None else (0, 0)
    command = bytearray(
        struct.pack(
            PASSTHRU_COMMAND,
            *(opcode, 0, 0, nsid, 0, 0, 0, address, 0, length),
            *(cdw10, 0, 0, 0, 0, 0, 0, 0),
        )
    )
    if status := fcntl.ioctl(fd, request, command):
        raise OSError(errno.EIO, f"NVMe command {opcode:#x} failed with status {status:#x}")
