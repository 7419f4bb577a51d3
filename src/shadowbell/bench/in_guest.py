"""fio in a Linux guest, on our disk and on QEMU's own, one after the other, a boot each."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from shadowbell import guest
from shadowbell.bench.guest_devices import (
    STORAGE_DAEMON,
    Setup,
    backend,
    other,
    qemu_nvme,
    shadowbell,
    vhost_user_blk,
    virtio_blk,
)
from shadowbell.bench.sweep import Progress
from shadowbell.bench.target import Socket, paused
from shadowbell.config import parse_namespace
from shadowbell.errors import UserError
from shadowbell.guest import Guest, Ledger
from shadowbell.guest.fio import FioResult, run_fio
from shadowbell.guest.locate import find_qemu_tool

RAMP: Final = 1  # seconds before fio counts
COUNT_SECONDS: Final = 1  # of a load whose doorbell writes are traced, which slows it


@dataclass(frozen=True)
class GuestMeasured:
    """fio's median run on a disk; ``doorbells`` (register writes) and ``interrupts`` an I/O.

    None where they can't be counted.
    """

    name: str
    depth: int
    kernel: str
    result: FioResult
    doorbells: float | None
    interrupts: float | None


def measure_in_guest(
    namespace: str,
    *,
    depths: Sequence[int],
    seconds: float,
    runs: int,
    options: Sequence[str] = (),
    against: Sequence[Socket] = (),
    pause: bool = False,
    progress: Progress,
) -> tuple[list[GuestMeasured], list[str]]:
    """Measure all disks on one back end: the figures, and what was left out and why.

    Random reads of 4 KiB. ``options`` follow `shadowbell serve`. ``pause`` stops the other servers
    while their disks aren't measured. Raises UserError when no guest can be booted here or a disk
    fails.
    """
    missing = guest.available()
    if missing is not None:
        raise UserError(f"--guest: {missing}")
    measured: list[GuestMeasured] = []
    with backend(parse_namespace(namespace), namespace) as store:
        own: list[AbstractContextManager[Setup]] = [
            shadowbell(store, options),
            qemu_nvme(store, ioeventfd=False),
            qemu_nvme(store, ioeventfd=True),
            virtio_blk(store, iothread=False),
            virtio_blk(store, iothread=True),
        ]
        left_out = []
        daemon = find_qemu_tool(STORAGE_DAEMON)
        if daemon is not None:
            own.append(vhost_user_blk(store, daemon))
        else:
            left_out.append(f"vhost-user-blk: no {STORAGE_DAEMON} beside QEMU or on PATH")
        pids = {target: target.server() if pause else None for target in against}
        turns = [(disk, list(pids.values())) for disk in own]
        for target in against:
            rest = [pid for other_one, pid in pids.items() if other_one != target]
            turns.append((other(target), rest))
        for disk, resting in turns:
            with paused(resting), disk as setup:
                try:
                    measured += _boot_and_measure(setup, depths, seconds, runs, progress)
                except guest.GuestError as error:
                    raise UserError(f"{setup.name}: {error}") from error
    return measured, left_out


def _boot_and_measure(
    setup: Setup, depths: Sequence[int], seconds: float, runs: int, progress: Progress
) -> Iterator[GuestMeasured]:
    with tempfile.TemporaryDirectory(prefix="shadowbell-trace-") as folder:
        log = Path(folder) / "trace"
        progress(f"{setup.name}: booting")
        with Guest(setup.devices, extra=[*setup.extra, "-D", str(log)]) as vm:
            device = _find_disk(vm)
            for depth in depths:
                progress(f"{setup.name}: queue depth {depth}")
                yield _measure(vm, setup, log, device, depth, seconds, runs)


def _find_disk(vm: Guest) -> str:
    script = "ls /sys/block | grep -E '^(nvme[0-9]+n[0-9]+|vd[a-z])$' | head -n 1"
    name = vm.run(script)[1].strip()
    if not name:
        raise guest.GuestError("the guest found no disk (virtio-blk may not be in its kernel)")
    return f"/dev/{name}"


def _measure(
    vm: Guest, setup: Setup, log: Path, device: str, depth: int, seconds: float, runs: int
) -> GuestMeasured:
    found = []
    for _ in range(runs):
        before, reads, raised = _ledger(setup), _reads(vm, device), _interrupts(vm)
        result = run_fio(vm, device, _options(depth, seconds, RAMP))
        after, reads, raised = _ledger(setup), _reads(vm, device) - reads, _interrupts(vm) - raised
        doorbells = (after - before).doorbells_per_command if after and before else None
        interrupts = raised / max(1, reads)
        found.append(
            GuestMeasured(setup.name, depth, vm.kernel_release, result, doorbells, interrupts)
        )
    middle = statistics.median_low(one.result.iops for one in found)
    median = next(one for one in found if one.result.iops == middle)
    if not setup.traces:
        return median
    return replace(median, doorbells=_traced_doorbells(vm, setup, log, device, depth))


def _ledger(setup: Setup) -> Ledger | None:
    return setup.served.ledger("disk.sock") if setup.served is not None else None


def _reads(vm: Guest, device: str) -> int:
    """Reads the disk has completed, those before fio began to count included."""
    return int(vm.check(f"cat /sys/block/{Path(device).name}/stat").split()[0])


def _options(depth: int, seconds: float, ramp: float) -> str:
    time = f"--time_based --runtime={seconds:g}" + (f" --ramp_time={ramp:g}" if ramp else "")
    return f"--rw=randread --bs=4k --iodepth={depth} {time}"


def _interrupts(vm: Guest) -> int:
    """Interrupts of the guest's disk queues so far."""
    script = "grep -E 'nvme[0-9]+q[1-9]|virtio[0-9]+-req' /proc/interrupts || true"
    total = 0
    for line in vm.check(script).splitlines():
        for field in line.split()[1:]:
            if not field.isdigit():
                break
            total += int(field)
    return total


def _traced_doorbells(vm: Guest, setup: Setup, log: Path, device: str, depth: int) -> float:
    def trace(enable: bool) -> None:
        for event in setup.traces:
            vm.qmp.execute("trace-event-set-state", name=event, enable=enable)

    trace(True)
    before = _lines(log, setup.traces)
    result = run_fio(vm, device, _options(depth, COUNT_SECONDS, 0))
    trace(False)
    return (_lines(log, setup.traces) - before) / max(1, result.total_ios)


def _lines(log: Path, events: Sequence[str]) -> int:
    if not log.exists():
        return 0
    with log.open(errors="replace") as file:
        return sum(1 for line in file if any(event in line for event in events))
