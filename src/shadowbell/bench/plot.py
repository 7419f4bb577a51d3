"""The picture: IOPS and latency percentiles by queue depth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

from shadowbell.bench.measure import Measured
from shadowbell.bench.report import medians
from shadowbell.bench.table import constants, varying
from shadowbell.errors import UserError

PERCENTILES: Final[tuple[tuple[float, Literal["-", "--", ":"], str], ...]] = (
    (50.0, "-", "o"),
    (99.0, "--", "s"),
    (99.9, ":", "^"),
)
SUFFIXES: Final = (".png", ".svg", ".pdf")


def check_plot(path: str) -> None:
    """Raise UserError when the picture couldn't be drawn: before an hour of measuring."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UserError(f"can't draw {path}: use a name that ends in {', '.join(SUFFIXES)}")
    if not Path(path).absolute().parent.is_dir():
        raise UserError(f"can't draw {path}: its folder doesn't exist")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError("--plot needs matplotlib: pip install 'shadowbell[plot]'") from error


def draw(path: str, measured: Sequence[Measured]) -> None:
    """Draw the median runs, a line for each target and each setting but the queue depth.

    Raises UserError when the file can't be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    series = _series(medians(measured))
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    rates, latencies = figure.subplots(1, 2)
    depths = sorted({one.point.depth for one in measured})
    handles: list[Any] = []
    for number, (name, points) in enumerate(series.items()):
        colour = f"C{number % 10}"
        points.sort(key=lambda one: one.point.depth)
        x = [one.point.depth for one in points]
        rates.plot(x, [one.stats.iops for one in points], color=colour, marker="o")
        for percent, style, marker in PERCENTILES:
            y = [one.stats.percentile(percent) for one in points]
            latencies.plot(x, y, color=colour, linestyle=style, marker=marker, markersize=5)
        handles.append(Line2D([], [], color=colour, linewidth=2, label=name))
    for axes, title in ((rates, "I/Os a second"), (latencies, "Latency, µs")):
        axes.set_title(title, loc="left")
        axes.set_xlabel("queue depth")
        axes.set_xscale("log", base=2)
        axes.set_xticks(depths, [str(depth) for depth in depths])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    rates.set_ylim(bottom=0)
    rates.yaxis.set_major_formatter(lambda value, _: _short(value))
    latencies.set_yscale("log")
    latencies.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    latencies.legend(
        handles=[
            Line2D([], [], color="0.3", linestyle=style, marker=marker, label=f"p{percent:g}")
            for percent, style, marker in PERCENTILES
        ],
        frameon=False,
    )
    if len(handles) > 1:
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    names = " and ".join(dict.fromkeys(one.target for one in measured))
    figure.suptitle(
        f"{names}: {constants([one.point for one in measured])}", x=0.01, ha="left", fontsize=11
    )
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise UserError(f"can't write {path} ({error.strerror}): choose another file") from error


def _series(measured: Sequence[Measured]) -> dict[str, list[Measured]]:
    axes = [axis for axis in varying([one.point for one in measured]) if axis[0] != "QD"]
    several = len({one.target for one in measured}) > 1
    series: dict[str, list[Measured]] = {}
    for one in measured:
        words = [one.target] if several else []
        words += [_label(name, text(one.point)) for name, text in axes]
        series.setdefault(", ".join(words) or one.target, []).append(one)
    return series


def _label(axis: str, value: str) -> str:
    return value if axis in ("door\nbells", "load", "block") else f"{axis.split()[0]} {value}"


def _short(value: float) -> str:
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"
