"""The guest's half of `shadowbell demo`: the three doorbell ways, seen from inside Linux."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .fio import FioResult, run_fio, verify
from .machine import Guest, disk
from .served import Ledger, Served

SECONDS = 2
DEPTHS = (1, 32)
# What a controller is served with, for each way a Linux guest can ring.
WAYS = {"trap": ("--no-dbbuf",), "shadow": (), "mapped": ("--doorbells", "mapped")}


@dataclass(frozen=True)
class Measured:
    result: FioResult
    ledger: Ledger


def demo(console: Console) -> None:
    """Boots a Linux guest with three disks, measures and verifies each, and prints one table.

    Takes about 40 s where QEMU has to emulate. Raises GuestError, ServeError.
    """
    steps = 1 + len(WAYS) * (len(DEPTHS) + 1)
    with (
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        ) as progress,
        Served(_arguments()) as served,
    ):
        task = progress.add_task("booting a Linux guest", total=steps)
        with Guest([disk(served.socket(way)) for way in WAYS]) as guest:
            progress.advance(task)
            measured: dict[tuple[str, int], Measured] = {}
            for way in WAYS:
                device = find_namespace(guest, way)
                for depth in DEPTHS:
                    progress.update(task, description=f"guest: {way}, queue depth {depth}")
                    measured[way, depth] = _measure(served, guest, way, device, depth)
                    progress.advance(task)
                progress.update(task, description=f"guest: {way}, verifying")
                verify(guest, device)
                progress.advance(task)
            kernel = guest.kernel_release
    console.print(_table(kernel, measured))


def find_namespace(guest: Guest, serial: str, nsid: int = 1) -> str:
    """The block device of a controller's namespace: Linux numbers controllers in any order."""
    script = (
        "for c in /sys/class/nvme/nvme*; do"
        f" [ $(cat $c/serial) = {serial} ] && for n in $c/nvme*n*; do"
        f" [ $(cat $n/nsid) = {nsid} ] && echo ${{n##*/}}; done; done; true"
    )
    return f"/dev/{guest.check(script).strip()}"


def _arguments() -> list[str]:
    arguments: list[str] = []
    for way, options in WAYS.items():
        arguments += ["--and"] if arguments else []
        arguments += ["--namespace", "memory:64M", "--socket", "{folder}/" + way]
        arguments += ["--serial", way, *options]
    return arguments


def _measure(served: Served, guest: Guest, way: str, device: str, depth: int) -> Measured:
    before = served.ledger(way)
    options = f"--rw=randread --bs=4k --iodepth={depth} --time_based --runtime={SECONDS}"
    result = run_fio(guest, device, options)
    return Measured(result, served.ledger(way) - before)


def _table(kernel: str, measured: dict[tuple[str, int], Measured]) -> Table:
    table = Table(
        title=f"In a Linux {kernel} guest: fio, 4 KiB random reads",
        caption="Each disk was written at random and read back: every crc32c was right.",
    )
    for name in ("doorbells", "depth", "IOPS", "p50 µs", "p99 µs", "doorbell writes per I/O",
                 "interrupts per I/O"):  # fmt: skip
        table.add_column(name, justify="left" if name == "doorbells" else "right")
    for (way, depth), one in measured.items():
        table.add_row(
            way,
            str(depth),
            f"{one.result.iops:,.0f}",
            f"{one.result.p50:,.0f}",
            f"{one.result.p99:,.0f}",
            f"{one.ledger.doorbells_per_command:.3f}",
            f"{one.ledger.interrupts_per_command:.3f}",
            end_section=depth == DEPTHS[-1],
        )
    return table
