"""The demo's story and its table."""

from __future__ import annotations

from collections.abc import Callable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from shadowbell import guest
from shadowbell.demo.measure import DISK, WAYS, Cost, Tick, Way, fill_and_check, measure
from shadowbell.driver import Host, LoadStats, Verifier
from shadowbell.errors import UserError
from shadowbell.guest import Served, ServeError

SIZE = 256 << 20
DEPTHS = (1, 32)
SECONDS = 3.0
SOCKET = "disk.sock"

Step = Callable[[str], Tick]
"""Announces a step by its name; returns how to report its progress."""


def run(console: Console | None = None) -> int:
    """Run the demo; returns 0, or 1 when what was read isn't what was written.

    Raises UserError when the server doesn't start.
    """
    console = console or Console()
    console.print(
        "[bold]shadowbell demo[/]: a file becomes an NVMe disk, and a userspace driver uses it\n"
        "through the same vfio-user socket that a virtual machine would.\n"
    )
    costs: list[tuple[Way, int, Cost]] = []
    sound = True
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(WAYS) * (1 + len(DEPTHS)))
        steps = 0

        def step(name: str) -> Tick:
            nonlocal steps
            done, steps = steps, steps + 1
            progress.update(bar, description=name, completed=done)
            return lambda part: progress.update(bar, completed=done + part)

        for way in WAYS:
            try:
                loads, measured = _run_way(way, step)
            except ServeError as error:
                raise UserError(str(error)) from error
            progress.console.print(_verdict(way, *loads))
            sound = sound and all(stats.clean for stats in loads)
            costs += [(way, depth, cost) for depth, cost in measured]
    console.print()
    console.print(_table(costs))
    console.print(
        "[dim]4 KiB random reads of a memory namespace, one queue, the driver asleep between\n"
        "interrupts. MMIO/IO: doorbell register writes, each an exit in a virtual\n"
        "machine. irq/IO: interrupts. CPU: the server's, of one core.[/]\n"
    )
    if not sound or not all(cost.stats.clean for _, _, cost in costs):
        console.print("[bold red]Verification failed.[/]")
        return 1
    return _guest(console)


def _run_way(way: Way, step: Step) -> tuple[tuple[LoadStats, LoadStats], list[tuple[int, Cost]]]:
    arguments = ["{folder}/disk.img", "--namespace", "memory:256M"]
    served = Served([*arguments, "--socket", f"{{folder}}/{SOCKET}", *way.serve])
    with (served.folder / "disk.img").open("wb") as image:
        image.truncate(SIZE)
    with served, Host.connect(served.socket(SOCKET), doorbells=way.doorbells) as host:
        queue = host.create_queue_pair(128, interrupts=True)
        verifier = Verifier(host.namespaces[DISK].blocks, host.lba_size(DISK))
        tick = step(f"{way.name}: write and verify")
        loads = fill_and_check(host, queue, verifier, tick)
        costs = []
        for depth in DEPTHS:
            tick = step(f"{way.name}: queue depth {depth}")
            costs.append((depth, measure(host, queue, served.pid, depth, SECONDS, tick)))
    return loads, costs


def _verdict(way: Way, written: LoadStats, read: LoadStats) -> str:
    if written.clean and read.clean:
        size = f"{written.bytes >> 20} MiB"
        speeds = " and ".join(
            f"{what} at {stats.bytes / stats.seconds / 1e6:,.0f} MB/s"
            for what, stats in (("written", written), ("read back", read))
        )
        return f"[green]ok[/]  {way.name}: {size} {speeds}, verified"
    bad = f"{read.mismatches} wrong blocks (first: LBA {read.first_mismatch})"
    errors = f"{written.errors + read.errors} errors, {written.lost + read.lost} lost"
    return f"[red]BAD[/] {way.name}: {bad}, {errors}"


def _table(costs: list[tuple[Way, int, Cost]]) -> Table:
    title = "Three ways to ring a doorbell"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("doorbells", no_wrap=True)
    for name in ("QD", "IOPS", "p50 µs", "p99 µs", "MMIO/IO", "irq/IO", "CPU %", "CPU µs/IO"):
        table.add_column(name, justify="right", no_wrap=True)
    for way, depth, cost in costs:
        stats = cost.stats
        # An ioeventfd stands for a register write too: a guest's exit that ends in its kernel.
        written = stats.registers + stats.wakeups
        table.add_row(
            way.name if depth == DEPTHS[0] else "",
            str(depth),
            f"{stats.iops:,.0f}",
            f"{stats.percentile(50):,.1f}",
            f"{stats.percentile(99):,.1f}",
            f"{stats.per_io(written):.4f}",
            f"{stats.per_io(stats.interrupts):.3f}",
            f"{cost.cpu_percent:.0f}",
            f"{cost.cpu_us_per_io:.2f}",
            end_section=depth == DEPTHS[-1],
        )
    return table


def _guest(console: Console) -> int:
    missing = guest.available()
    if missing is not None:
        console.print(
            f"The same from inside a Linux guest: {missing}\n"
            "(`make qemu guest` fetches both; then run the demo again)."
        )
        return 0
    try:
        guest.demo(console)
    except (guest.GuestError, ServeError) as error:
        console.print(f"[bold red]The guest failed:[/] {escape(str(error))}")
        return 1
    return 0
