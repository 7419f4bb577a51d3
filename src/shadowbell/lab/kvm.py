"""Just enough of KVM for a few bytes of guest code: one virtual machine with one processor.

Source: Linux, Documentation/virt/kvm/api.rst and include/uapi/linux/kvm.h. The processor starts in
32-bit protected mode without paging, so that guest addresses are what they look like. There is no
interrupt controller: HLT ends a run. Not done: interrupts, several processors, other architectures.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import platform
import struct
from collections import Counter
from collections.abc import Callable
from ctypes import addressof, c_char
from enum import IntEnum
from typing import Final, Self

DEVICE: Final = "/dev/kvm"
API_VERSION: Final = 12

GET_API_VERSION: Final = 0xAE00
CREATE_VM: Final = 0xAE01
CHECK_EXTENSION: Final = 0xAE03
GET_VCPU_MMAP_SIZE: Final = 0xAE04
CREATE_VCPU: Final = 0xAE41
SET_USER_MEMORY_REGION: Final = 0x4020AE46
SET_TSS_ADDR: Final = 0xAE47
IOEVENTFD: Final = 0x4040AE79
RUN: Final = 0xAE80
SET_REGS: Final = 0x4090AE82
GET_SREGS: Final = 0x8138AE83
SET_SREGS: Final = 0x4138AE84
CAP_IOEVENTFD: Final = 36

# struct kvm_run
EXIT_REASON: Final = 8
MMIO: Final = struct.Struct("<Q8sIB")  # phys_addr, data, len, is_write
MMIO_AT: Final = 32
# struct kvm_sregs: eight segments, two tables, then the control registers
SREGS_SIZE: Final = 312
SEGMENT: Final = struct.Struct("<QIH10B")  # base, limit, selector; type, present, dpl, db, s, ...
CR0_AT: Final = 224
PROTECTED_MODE: Final = 0x11  # PE and ET; caches on
REGS: Final = struct.Struct("<18Q")
REGION: Final = struct.Struct("<IIQQQ")  # slot, flags, guest address, size, our address
IOEVENT: Final = struct.Struct("<QQIiI36x")  # datamatch, address, length, fd, flags
DATAMATCH: Final = 1

TSS_ADDRESS: Final = 0x7FFB_D000  # three pages that Intel needs, out of the way


class Exit(IntEnum):
    """KVM_EXIT_*: why the processor left the kernel."""

    HLT = 5
    MMIO = 6
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTERNAL_ERROR = 17


KNOWN: Final = frozenset(int(reason) for reason in Exit)


class KvmError(Exception):
    """The processor stopped for another reason than HLT."""


def unavailable() -> str | None:
    """Why there is no KVM here, or None."""
    if platform.machine() != "x86_64":
        return f"the lab's guest code is for x86-64, not {platform.machine()}"
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"{DEVICE} can't be opened: {error.strerror}"
    try:
        if fcntl.ioctl(fd, GET_API_VERSION, 0) != API_VERSION:
            return f"{DEVICE} isn't KVM's API version {API_VERSION}"
        if not fcntl.ioctl(fd, CHECK_EXTENSION, CAP_IOEVENTFD):
            return "this KVM has no ioeventfds"
        return None
    except OSError as error:
        return f"{DEVICE} doesn't answer: {error.strerror}"
    finally:
        os.close(fd)


class Machine:
    """A virtual machine. ``exits`` counts why its processor came back to us.

    Raises OSError where KVM can't make it.
    """

    def __init__(self) -> None:
        self.exits: Counter[Exit] = Counter()
        self._fds: list[int] = []
        self._maps: list[mmap.mmap] = []
        self._slots = 0
        try:
            kvm = self._keep(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
            self._vm = self._keep(fcntl.ioctl(kvm, CREATE_VM, 0))
            fcntl.ioctl(self._vm, SET_TSS_ADDR, TSS_ADDRESS)
            self._vcpu = self._keep(fcntl.ioctl(self._vm, CREATE_VCPU, 0))
            size = fcntl.ioctl(kvm, GET_VCPU_MMAP_SIZE, 0)
            self._run = mmap.mmap(self._vcpu, size)
            self._flat_segments()
        except BaseException:
            self.close()
            raise

    def _keep(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the machine, its ioeventfds and memory slots with it."""
        while self._fds:
            os.close(self._fds.pop())

    def _flat_segments(self) -> None:
        sregs = bytearray(SREGS_SIZE)
        fcntl.ioctl(self._vcpu, GET_SREGS, sregs)
        for number in range(6):  # cs, ds, es, fs, gs, ss: 4 GiB from 0, 32 bits
            kind = 0xB if number == 0 else 0x3  # code: execute and read; data: read and write
            SEGMENT.pack_into(
                sregs, number * SEGMENT.size, 0, 0xFFFFFFFF, 8 << (number > 0),
                *(kind, 1, 0, 1, 1, 0, 1, 0, 0, 0),
            )  # fmt: skip
        struct.pack_into("<Q", sregs, CR0_AT, PROTECTED_MODE)
        fcntl.ioctl(self._vcpu, SET_SREGS, bytes(sregs))

    def map(self, guest: int, address: int, size: int) -> None:
        """Let the guest see ``size`` bytes of our memory; both addresses in whole pages."""
        region = REGION.pack(self._slots, 0, guest, size, address)
        fcntl.ioctl(self._vm, SET_USER_MEMORY_REGION, region)
        self._slots += 1

    def map_page(self, guest: int, data: bytes = b"") -> mmap.mmap:
        """A page of the guest's own, which begins with ``data``."""
        page = mmap.mmap(-1, mmap.PAGESIZE)
        page[: len(data)] = data
        self._maps.append(page)
        self.map(guest, addressof(c_char.from_buffer(page)), mmap.PAGESIZE)
        return page

    def ioeventfd(self, address: int, fd: int, match: int | None = None) -> None:
        """Have the kernel count 4-byte writes to an address in ``fd``; ``match``: of one value.

        Raises OSError (ENOSPC) when the machine has no room for one more.
        """
        flags = 0 if match is None else DATAMATCH
        fcntl.ioctl(self._vm, IOEVENTFD, IOEVENT.pack(match or 0, address, 4, fd, flags))

    def run(self, entry: int, wrote: Callable[[int, int], object] | None = None) -> None:
        """Run from an address until HLT. ``wrote(address, value)`` sees writes to no memory.

        Raises KvmError when the processor stops in another way.
        """
        regs = [0] * 18
        regs[16], regs[17] = entry, 2  # rip, rflags
        fcntl.ioctl(self._vcpu, SET_REGS, REGS.pack(*regs))
        while True:
            try:
                fcntl.ioctl(self._vcpu, RUN, 0)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN):
                    continue
                raise
            reason = int.from_bytes(self._run[EXIT_REASON : EXIT_REASON + 4], "little")
            if reason not in KNOWN:
                raise KvmError(f"the processor left the guest for reason {reason}")
            self.exits[Exit(reason)] += 1
            if reason == Exit.HLT:
                return
            if reason != Exit.MMIO:
                raise KvmError(f"the processor stopped: {Exit(reason).name}")
            address, data, length, is_write = MMIO.unpack_from(self._run, MMIO_AT)
            if is_write and wrote is not None:
                wrote(address, int.from_bytes(data[:length], "little"))
