"""The lab's story: three experiments and a table."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from shadowbell.errors import UserError
from shadowbell.guest import ServeError
from shadowbell.lab.driven import WAYS, Driven, drive
from shadowbell.lab.ioeventfd import lose_the_value, match_values
from shadowbell.lab.kvm import KvmError, unavailable

COMMANDS = 1000
DESCRIPTORS = 16
LINUX_ENTRIES = 1024  # of a queue that Linux makes, where the device allows so many


def run(console: Console | None = None) -> int:
    """Run the experiments; returns 0, or 1 when one didn't go as it must.

    Raises UserError where there is no KVM, or when the server or the guest fails.
    """
    missing = unavailable()
    if missing is not None:
        raise UserError(f"{missing}: the lab needs KVM and read and write access to it")
    console = console or Console()
    console.print(
        "[bold]shadowbell lab ioeventfd[/]: an ioeventfd lets a guest's doorbell write wake the\n"
        "device inside the kernel. It counts writes and forgets what was written.\n"
    )
    try:
        sound = [_lost(console), _matched(console)]
        driven = [drive(way, COMMANDS) for way in WAYS]
    except (KvmError, ServeError) as error:
        raise UserError(str(error)) from error
    console.print(_table(driven))
    sound += [each.completed == each.commands for each in driven]
    sound += [each.exits == 0 for each in driven if each.way.ioeventfd]
    if not all(sound):
        console.print("[bold red]This isn't what must come out.[/]")
        return 1
    console.print(
        "[dim]writes: doorbell registers written by the guest; exits: those that left the\n"
        "kernel; woken: those that woke the device by its ioeventfd.[/]\n\n"
        "The shadow keeps the value in memory, so an ioeventfd has only to wake the\n"
        "device: each block was read and checked, and the guest's processor never left\n"
        "the kernel for a doorbell.\n"
    )
    return 0


def _words(values: list[int]) -> str:
    return ", ".join(str(value) for value in values)


def _lost(console: Console) -> bool:
    lost = lose_the_value([1, 2, 3])
    console.print(
        "[bold]1. An ioeventfd on a traditional tail doorbell.[/]\n"
        f"   The guest writes tails {_words(lost.written)}. The eventfd says {lost.count}: so many "
        f"writes.\n   Of what, nobody knows. Exits, which would have told: {lost.exits}.\n"
    )
    return lost.count == len(lost.written) and lost.exits == 0


def _matched(console: Console) -> bool:
    written = [3, 5, DESCRIPTORS]
    matched = match_values(DESCRIPTORS, written)
    console.print(
        f"[bold]2. A descriptor for each value (datamatch), here 0 to {DESCRIPTORS - 1}.[/]\n"
        f"   The guest writes tails {_words(written)}. Known by their descriptors: "
        f"{_words(list(matched.counts))}.\n   Without one, and so an exit: "
        f"{_words(matched.exited)}. A queue of {LINUX_ENTRIES:,} entries, as Linux makes\n"
        f"   them, would take {LINUX_ENTRIES:,} descriptors, and there are many queues.\n"
    )
    return matched.exited == [DESCRIPTORS] and matched.counts == {3: 1, 5: 1}


def _table(driven: list[Driven]) -> Table:
    table = Table(
        title=f"3. A guest reads {COMMANDS:,} blocks of a served disk, one at a time",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
    )
    table.add_column("doorbells", no_wrap=True)
    for name in ("checked", "writes", "exits", "woken", "µs each"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in driven:
        table.add_row(
            each.way.name,
            f"{each.completed:,}",
            f"{each.rings:,}",
            f"{each.exits:,}",
            f"{each.wakeups:,}",
            f"{each.seconds / each.commands * 1e6:,.0f}",
        )
    return table
