"""A guest that drives a served disk: how many of its doorbells leave the kernel."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import time
from dataclasses import dataclass
from typing import Final, Self

from shadowbell.driver import Host
from shadowbell.driver.wire import REGION_BAR0
from shadowbell.errors import UserError
from shadowbell.guest import Served
from shadowbell.lab.kvm import Exit, Machine
from shadowbell.lab.programs import CODE, Places, driver
from shadowbell.nvme import IoOpcode, SubmissionEntry
from shadowbell.nvme.doorbells import (
    DOORBELL_BASE,
    completion_doorbell,
    submission_doorbell,
)

COUNTERS: Final = 0x2000
ARENA: Final = 0x1000_0000
BAR0: Final = 0xC000_0000
QID: Final = 1
NSID: Final = 1
ENTRIES: Final = 16
SOCKET: Final = "lab.sock"


@dataclass(frozen=True)
class Way:
    """How the guest rings: ``shadowed`` or always, by ``ioeventfd`` or by leaving the kernel."""

    name: str
    shadowed: bool
    ioeventfd: bool
    serve: tuple[str, ...] = ()


WAYS: Final = (
    Way("register", shadowed=False, ioeventfd=False),
    Way("shadow + register", True, False, ("--poll-max-us", "0")),
    Way("shadow + ioeventfd", True, True, ("--poll-max-us", "0")),
    Way("the same, polled", True, True),
)


@dataclass(frozen=True)
class Driven:
    """What came of a guest that had ``commands`` blocks to read and check.

    ``rings``: doorbell registers it wrote; ``exits``: those that took its processor out of the
    kernel; ``wakeups``: times that an eventfd woke the device.
    """

    way: Way
    commands: int
    completed: int
    rings: int
    exits: int
    wakeups: int
    seconds: float


def drive(way: Way, commands: int) -> Driven:
    """Serve a disk and have a guest read it.

    Raises UserError when the server offers no ioeventfd, ServeError when it fails, KvmError when
    the guest does.
    """
    served = Served(["--namespace", "memory:4M", "--socket", f"{{folder}}/{SOCKET}", *way.serve])
    with served, Host.connect(served.socket(SOCKET), doorbells="trap") as host:
        _number_blocks(host, commands)
        with MiniatureHost(host, shadowed=way.shadowed) as guest:
            if way.ioeventfd:
                guest.use_ioeventfds()
            begin = time.monotonic()
            completed, rings = guest.run(commands)
            seconds = time.monotonic() - begin
            exits = guest.machine.exits[Exit.MMIO]
            return Driven(way, commands, completed, rings, exits, _wakeups(served), seconds)


def _number_blocks(host: Host, last: int) -> None:
    """Let each block begin with its number."""
    queue = host.create_queue_pair(ENTRIES)
    size = host.lba_size(NSID)
    blocks = b"".join(struct.pack("<I", number).ljust(size, b"\0") for number in range(last + 1))
    for start in range(0, len(blocks), 64 * size):
        queue.write(NSID, start // size, blocks[start : start + 64 * size])
    host.delete_queue_pair(queue)


def _wakeups(served: Served) -> int:
    served.ledger(SOCKET)  # has the server write the file
    queues = json.loads(served.socket(f"{SOCKET}.ledger").read_text())
    return sum(int(queue["ioeventfd_wakeups"]) for queue in queues)


class MiniatureHost:
    """A queue pair in memory that a guest shares with the device, and the guest that uses it.

    The set-up is done from here, by the driver's admin commands; the guest only does I/O.
    """

    def __init__(self, host: Host, *, shadowed: bool) -> None:
        self._host = host
        self._shadowed = shadowed
        self._fds: list[int] = []
        arena = host.arena
        self._buffers = [arena.allocate(4096) for _ in range(5)]
        sq, cq, data, shadow, event = self._buffers
        if shadowed:
            host.admin.configure_doorbell_buffer(shadow.iova, event.iova)
        read = SubmissionEntry(opcode=IoOpcode.READ, nsid=NSID, prp1=data.iova)
        for slot in range(ENTRIES):
            sq.view[64 * slot : 64 * slot + 64] = bytes(read)
        host.admin.create_cq(QID, cq.iova, ENTRIES, None)
        host.admin.create_sq(QID, sq.iova, ENTRIES, QID)
        tail, head = submission_doorbell(QID), completion_doorbell(QID)
        shadow_page = ARENA + shadow.offset - DOORBELL_BASE
        event_page = ARENA + event.offset - DOORBELL_BASE
        self._places = Places(
            sq=ARENA + sq.offset,
            cq=ARENA + cq.offset,
            data=ARENA + data.offset,
            tail_shadow=shadow_page + tail,
            tail_event=event_page + tail,
            head_shadow=shadow_page + head,
            head_event=event_page + head,
            tail_doorbell=BAR0 + tail,
            head_doorbell=BAR0 + head,
            completed=COUNTERS,
            rings=COUNTERS + 4,
        )
        self.machine = Machine()
        self.machine.map(ARENA, arena.address, arena.size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.machine.close()
        for fd in self._fds:
            os.close(fd)
        with contextlib.suppress(OSError):  # the device may be what failed
            self._host.admin.delete_sq(QID)
            self._host.admin.delete_cq(QID)
        for buffer in self._buffers:
            buffer.free()

    def use_ioeventfds(self) -> None:
        """Put the eventfds that the server offers now on their doorbells.

        Raises UserError when there is none for the tail.
        """
        offered = self._host.client.io_eventfds(REGION_BAR0)
        self._fds += offered.values()
        if submission_doorbell(QID) not in offered:
            raise UserError("the server offers no ioeventfd for a shadowed queue: use a newer one")
        for offset, fd in offered.items():
            self.machine.ioeventfd(BAR0 + offset, fd)

    def run(self, commands: int) -> tuple[int, int]:
        """Have the guest read blocks ``commands``..1: (completed, doorbell registers written)."""
        code = driver(self._places, ENTRIES, commands, shadowed=self._shadowed)
        self.machine.map_page(CODE, code)
        counters = self.machine.map_page(COUNTERS)
        self.machine.run(CODE, self._post)
        completed, rings = struct.unpack_from("<II", counters)
        return completed, rings

    def _post(self, address: int, value: int) -> None:
        """A doorbell left the kernel: pass it on as a virtual machine monitor does."""
        data = struct.pack("<I", value)
        self._host.client.region_write(REGION_BAR0, address - BAR0, data, posted=True)
