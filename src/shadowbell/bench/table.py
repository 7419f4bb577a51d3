"""Results as tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from shadowbell.bench.measure import Measured, Point
from shadowbell.bench.report import medians
from shadowbell.bench.sweep import Ratio

QUIET = 0.1  # of a processor: what others may use before a figure deserves a warning

# A column for each of these that has more than one value in the table.
_AXES: tuple[tuple[str, Callable[[Point], str]], ...] = (
    ("door\nbells", lambda point: point.way),
    ("poll\nµs", lambda point: point.poll),
    ("load", lambda point: point.pattern),
    ("block", lambda point: size_text(point.block_size)),
    ("queues", lambda point: str(point.queues)),
    ("rate", lambda point: f"{point.rate:,.0f}" if point.rate else "flat out"),
    ("flush\nevery", lambda point: str(point.flush_every or "never")),
    ("QD", lambda point: str(point.depth)),
)


def size_text(size: int) -> str:
    """4096 is "4K"."""
    for unit, shift in (("G", 30), ("M", 20), ("K", 10)):
        if size >= 1 << shift and size % (1 << shift) == 0:
            return f"{size >> shift}{unit}"
    return str(size)


def varying(points: Sequence[Point]) -> list[tuple[str, Callable[[Point], str]]]:
    """The axes along which the points differ; queue depth always."""
    return [
        (name, text)
        for name, text in _AXES
        if name == "QD" or len({text(point) for point in points}) > 1
    ]


def new_table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    """An empty table in the house's style."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.padding = (0, 1, 0, 0)
    for name in left:
        table.add_column(name, no_wrap=True, vertical="bottom")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def constants(points: Sequence[Point]) -> str:
    """What all points have in common, for a title."""
    first, changing = points[0], {name for name, _ in varying(points)}
    flushes = f"a Flush every {first.flush_every} writes"
    words = [
        "" if "load" in changing else first.pattern,
        "" if "block" in changing else size_text(first.block_size),
        "" if "door\nbells" in changing else f"doorbells: {first.way}",
        flushes if first.flush_every and "flush\nevery" not in changing else "",
        "" if "queues" in changing or first.queues == 1 else f"{first.queues} queues",
        "driver on interrupts" if first.interrupts else "driver polls",
        "a busy process on the server's CPU" if first.compete else "",
    ]
    return ", ".join(filter(None, words))


Column = tuple[str, Callable[[Measured], str]]


def _columns(measured: Sequence[Measured]) -> list[Column]:
    """The figures, without those that say nothing here: 80 characters are few."""
    columns: list[Column] = [("IOPS", lambda one: f"{one.stats.iops:,.0f}")]
    if any(one.point.block_size > 4096 for one in measured):
        columns.append(("MB/s", lambda one: f"{one.stats.iops * one.point.block_size / 1e6:,.0f}"))
    columns += [
        ("p50\nµs", lambda one: microseconds(one.stats.percentile(50))),
        ("p99", lambda one: microseconds(one.stats.percentile(99))),
        ("p99.9", lambda one: microseconds(one.stats.percentile(99.9))),
    ]
    if any(one.stats.flushes for one in measured):
        columns += [
            ("flush\np50", lambda one: microseconds(one.stats.flush_percentile(50))),
            ("p99", lambda one: microseconds(one.stats.flush_percentile(99))),
        ]
    columns += [
        ("MMIO\n/IO", lambda one: per_io(one.stats.per_io(one.stats.registers))),
    ]
    if any(one.stats.wakeups for one in measured):
        columns.append(("wake\n/IO", lambda one: per_io(one.stats.per_io(one.stats.wakeups))))
    if any(one.stats.interrupts for one in measured):
        columns.append(("irq\n/IO", lambda one: per_io(one.stats.per_io(one.stats.interrupts))))
    if any(one.server_cpu is not None for one in measured):
        columns += [
            ("CPU\n%", lambda one: _known(one.server_percent, 0)),
            ("µs\n/IO", lambda one: _known(one.server_us_per_io, 2)),
        ]
    return columns


def _known(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def results_table(measured: Sequence[Measured]) -> Table:
    """A row for each target and point: the run with the median IOPS."""
    points = [one.point for one in measured]
    axes, columns = varying(points), _columns(measured)
    several = len({one.target for one in measured}) > 1
    table = new_table(
        constants(points),
        ["target"] if several else [],
        [*(name for name, _ in axes), *(name for name, _ in columns)],
    )
    for one in medians(measured):
        table.add_row(
            *([one.target] if several else []),
            *(text(one.point) for _, text in axes),
            *(text(one) for _, text in columns),
        )
    return table


def ratios_table(first: str, second: str, ratios: Sequence[Ratio]) -> Table:
    """The first target by the second."""
    axes = varying([one.point for one in ratios])
    title = f"{first} by {second}, median of the runs"
    names = [*(name for name, _ in axes), "IOPS", "lowest", "highest", "p50"]
    table = new_table(title, [], names)
    for one in ratios:
        values = (one.iops, one.lowest, one.highest, one.p50)
        table.add_row(
            *(text(one.point) for _, text in axes), *(f"{value:.2f} x" for value in values)
        )
    return table


def legend(measured: Sequence[Measured]) -> str:
    """What the columns mean, and a warning when the machine wasn't quiet."""
    text = (
        "MMIO/IO: doorbell register writes by message; wake/IO: by ioeventfd; irq/IO: interrupts\n"
        "by eventfd. CPU % and µs/IO: the server's processor time, 100 being one processor."
    )
    if any(one.stats.flushes for one in measured):
        text += "\nflush: latencies of the Flush commands, which aren't counted as I/Os."
    others = max(one.others for one in measured)
    if others > QUIET:
        text += f"\nOther processes used up to {others * 100:.0f} % of a processor meanwhile."
    return text


def microseconds(value: float) -> str:
    """Three digits or so."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def per_io(value: float) -> str:
    """A count divided by the I/Os; 0 is none at all."""
    return "0" if value == 0 else "<0.0001" if value < 0.0001 else f"{value:.4f}"
