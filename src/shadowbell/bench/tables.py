"""The tables of the measurements beside the sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.table import Table

from shadowbell.bench.idle import Idle
from shadowbell.bench.in_guest import GuestMeasured
from shadowbell.bench.pings import Pinged, median_us
from shadowbell.bench.table import microseconds, new_table, per_io

PINGS_LEGEND: Final = (
    "bare: a message out and an eventfd back between two sleeping processes; the ratio is of\n"
    "mean latencies, the median of the runs'. The driver sleeps until it is interrupted."
)


def pings_table(target: str, cpus: tuple[int, int], pinged: Sequence[Pinged]) -> Table:
    """Queue depth 1 from sleep, beside the bare round trip."""
    table = new_table(
        f"Queue depth 1 from sleep, {target}, driver on CPU {cpus[0]}, device on CPU {cpus[1]}",
        [""],
        ["p50 µs", "p99 µs", "bare p50 µs", "bare p99 µs", "by bare"],
    )
    for one in pinged:
        values = [
            microseconds(median_us(runs, percent))
            for runs in (one.runs, one.bare)
            for percent in (50, 99)
        ]
        table.add_row(one.name, *values, f"{one.ratio:.2f} x")
    return table


def idle_table(way: str, measured: Sequence[Idle]) -> Table:
    """What idle controllers cost."""
    table = new_table(
        f"Idle controllers attached to one server, doorbells: {way}",
        [],
        ["controllers", "CPU %", "sleeps a second", "resident MiB"],
    )
    for one in measured:
        table.add_row(
            str(one.controllers),
            f"{one.cpu_percent:.3f}",
            f"{one.sleeps / one.seconds:.1f}",
            f"{one.resident / 2**20:.0f}",
        )
    return table


def guest_table(namespace: str, measured: Sequence[GuestMeasured]) -> Table:
    """The guest's disks side by side."""
    table = new_table(
        f"fio in a Linux {measured[0].kernel} guest: 4K random reads, {namespace}",
        ["disk"],
        ["QD", "IOPS", "p50 µs", "p99 µs", "MMIO/IO", "irq/IO"],
    )
    for one in measured:
        table.add_row(
            one.name,
            str(one.depth),
            f"{one.result.iops:,.0f}",
            f"{one.result.p50:,.0f}",
            f"{one.result.p99:,.0f}",
            "-" if one.doorbells is None else per_io(one.doorbells),
            "-" if one.interrupts is None else f"{one.interrupts:.2f}",
        )
    return table
