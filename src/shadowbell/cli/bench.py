"""`shadowbell bench`: its options, and which of its measurements they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, TypeVar, cast

from shadowbell.cli import bench_values as values
from shadowbell.cli.options import Parser
from shadowbell.config import parse_size
from shadowbell.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from shadowbell.bench import Point, Sweep, Target
    from shadowbell.bench.sweep import Progress

T = TypeVar("T")

WIDE = 140
EPILOG = """\
lists are separated by commas; what follows -- are options of `shadowbell serve`:
  shadowbell bench --namespace memory:1G --depth 1,32,128 --plot qd.png -- --iothreads 2
  shadowbell bench --namespace null:1T --against /run/spdk/ --runs 5 --cpus 0,1 --pause
  shadowbell bench --rate 1000,10000,100000 --poll-max-us 0,adaptive,busy
  shadowbell bench --ping --runs 5
  shadowbell bench --idle 1,64,512 --time 10
  shadowbell bench --guest --namespace null:1T"""

MAX_IDLE = 4096


def bench(arguments: list[str]) -> int:
    """Measure and print tables; returns 0. Raises UserError, also for a target that fails."""
    own, options = _split(arguments)
    given = _parser().parse_args(own)
    modes = [mode for mode in ("ping", "idle", "guest") if mode in given]
    if len(modes) > 1:
        raise UserError(f"--{modes[0]} and --{modes[1]} are two measurements: give one")
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = WIDE  # whoever reads a file can scroll
    run = {"ping": _ping, "idle": _idle, "guest": _guest}.get(modes[0]) if modes else _sweep
    assert run is not None
    run(given, options, console)
    return 0


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


def _parser() -> Parser:
    parser = Parser(
        "bench",
        description="Load a disk through its socket as a guest's driver would, and measure.",
        epilog=EPILOG,
    )
    what = parser.add_argument_group("what is measured")
    what.add_argument("--target", metavar="SOCKET", help="a running vfio-user NVMe server")
    what.add_argument(
        "--namespace", metavar="SPEC", help="serve this meanwhile (default memory:1G)"
    )
    what.add_argument(
        "--against",
        metavar="SOCKET|SPEC",
        help="a second one, measured in turn (A B A B); prints the median ratio; with --guest a "
        "list of sockets",
    )
    what.add_argument("--pause", action="store_true", help="stop the other one's process meanwhile")
    load = parser.add_argument_group("the load")
    load.add_argument(
        "--pattern", metavar="LIST", help=f"{', '.join(values.PATTERNS)} (default randread)"
    )
    load.add_argument("--mix", type=float, metavar="PERCENT", help="writes of randrw (default 50)")
    load.add_argument("--block-size", metavar="LIST", help="bytes of an I/O (default 4K)")
    load.add_argument("--depth", metavar="LIST", help="queue depths (default 1,32)")
    load.add_argument("--queues", type=int, metavar="N", help="queue pairs, one thread (default 1)")
    load.add_argument("--rate", metavar="LIST", help="I/Os to start a second (default flat out)")
    load.add_argument(
        "--flush-every",
        metavar="LIST",
        help="a Flush after so many writes of a queue, as fio's fdatasync (default 0: none)",
    )
    load.add_argument("--size", metavar="SIZE", help="use only so much of the namespace")
    load.add_argument("--verify", action="store_true", help="write it first, and check every read")
    load.add_argument(
        "--fill",
        action=argparse.BooleanOptionalAction,
        help="write it first (default: only a memory namespace that is served for this)",
    )
    load.add_argument("--time", type=float, metavar="SECONDS", help="of a run (default 2)")
    load.add_argument("--runs", type=int, metavar="N", help="of each point (default 1)")
    how = parser.add_argument_group("how both sides work")
    how.add_argument("--doorbells", metavar="LIST", help=f"{', '.join(values.WAYS)} (default auto)")
    how.add_argument("--interrupts", action="store_true", help="the driver sleeps, doesn't poll")
    how.add_argument(
        "--poll-max-us",
        metavar="LIST",
        help="the server's longest busy wait: microseconds, adaptive or busy (default adaptive)",
    )
    how.add_argument("--cpus", metavar="A,B", help="driver on processor A, server on B")
    how.add_argument("--compete", action="store_true", help="a busy process on the server's, too")
    modes = parser.add_argument_group("other measurements")
    modes.add_argument(
        "--ping", action="store_true", help="waking a sleeping device, beside a bare round trip"
    )
    modes.add_argument(
        "--idle", nargs="?", const="1,64,512", metavar="LIST", help="CPU of so many idle disks"
    )
    modes.add_argument(
        "--guest", action="store_true", help="fio in a Linux guest, beside QEMU's own disks"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", help="every run, with all that was counted")
    output.add_argument("--fio-json", metavar="FILE", help="the same as fio would write it")
    output.add_argument("--plot", metavar="FILE", help="a .png or .svg: IOPS, latency by depth")
    return parser


# --- the sweep


def _sweep(given: argparse.Namespace, options: list[str], console: Console) -> None:
    from shadowbell.bench import run_sweep, table
    from shadowbell.bench.fio import fio_document
    from shadowbell.bench.report import document, write_json
    from shadowbell.bench.sweep import ratios

    plan = sweep_of(given, options)
    if "plot" in given:
        from shadowbell.bench.plot import check_plot

        check_plot(given.plot)
    measured = _with_progress(console, lambda progress: run_sweep(plan, progress))
    compared = []
    console.print(table.results_table(measured))
    if len(plan.targets) == 2:
        names = plan.targets[0].name, plan.targets[1].name
        compared = ratios(measured, *names)
        console.print(table.ratios_table(*names, compared))
    console.print(table.legend(measured), style="dim", highlight=False, soft_wrap=True)
    if "json" in given:
        write_json(given.json, document(plan, measured, compared))
    if "fio_json" in given:
        write_json(given.fio_json, fio_document(measured))
    if "plot" in given:
        from shadowbell.bench.plot import draw

        draw(given.plot, measured)


def sweep_of(given: argparse.Namespace, options: Sequence[str]) -> Sweep:
    """The sweep that the options describe. Raises UserError."""
    from shadowbell.bench import Served, Sweep, parse_target

    targets = [_target(given, options)]
    if "against" in given:
        targets.append(parse_target(given.against, options))
        if targets[0].name == targets[1].name:
            raise UserError("--against names the same thing again: give another")
    if "poll_max_us" in given and not any(isinstance(target, Served) for target in targets):
        raise UserError("--poll-max-us is for a server that bench starts: leave it out")
    cpus = values.cpus(given)
    if "compete" in given and cpus is None:
        raise UserError("--compete: say with --cpus where the server is, or should be")
    return Sweep(
        targets=tuple(targets),
        points=_points(given),
        seconds=values.seconds(given, 2.0),
        runs=values.count(given, "runs", 1, 1000),
        cpus=cpus,
        size=parse_size(given.size) if "size" in given else None,
        verify="verify" in given,
        fill=getattr(given, "fill", None),
        pause="pause" in given,
    )


def _target(given: argparse.Namespace, options: Sequence[str]) -> Target:
    from shadowbell.bench import Socket, parse_target

    if "target" in given and "namespace" in given:
        raise UserError("--target is served by somebody, --namespace by bench: give one")
    if "target" not in given:
        return parse_target(getattr(given, "namespace", "memory:1G"), options)
    target = parse_target(given.target, options)
    if not isinstance(target, Socket):
        raise UserError(f"{given.target} is no socket: serve it with --namespace")
    if options and "against" not in given:
        raise UserError("options after -- are for a server that bench starts, not for --target")
    return target


def _points(given: argparse.Namespace) -> tuple[Point, ...]:
    from shadowbell.bench import Point

    polls = values.listed(given, "poll_max_us", "adaptive", values.poll)
    rates = values.listed(given, "rate", "0", values.rate) if "rate" in given else [0.0]
    depths = values.listed(given, "depth", "32" if "rate" in given else "1,32", values.depth)
    sizes = values.listed(given, "block_size", "4K", parse_size)
    patterns = values.listed(
        given, "pattern", "randread", values.choice("pattern", values.PATTERNS)
    )
    mix = getattr(given, "mix", 50.0)
    if not 0 <= mix <= 100:
        raise UserError(f"bad --mix {mix:g}: give 0 to 100 per cent")
    flushes = values.listed(given, "flush_every", "0", values.flush_every)
    if any(flushes):
        values.writing(patterns, mix)
    return tuple(
        Point(
            way=way,
            poll=poll,
            pattern=cast(Any, pattern),
            mix=mix,
            block_size=size,
            depth=depth,
            queues=values.count(given, "queues", 1, 128),
            rate=rate,
            flush_every=flush_every,
            interrupts="interrupts" in given,
            compete="compete" in given,
        )
        for way, poll, pattern, size, rate, flush_every, depth in product(
            values.ways(given, "auto"), polls, patterns, sizes, rates, flushes, depths
        )
    )


# --- the other measurements


def _ping(given: argparse.Namespace, options: list[str], console: Console) -> None:
    from shadowbell.bench.pings import measure_pings
    from shadowbell.bench.tables import PINGS_LEGEND, pings_table

    values.only(given, "ping", "target", "namespace", "doorbells", "time", "runs", "cpus", "json")
    target = _target(given, options)
    # The scheduler would put the two that ping on one processor, but not driver and device.
    cpus = values.cpus(given) or values.two_cpus()
    ways = values.ways(given, "trap,shadow")
    if "mapped" in ways:
        raise UserError("--ping: nobody can wake a device by a mapped doorbell: use trap, shadow")
    pinged = _with_progress(
        console,
        lambda progress: measure_pings(
            target,
            ways,
            seconds=values.seconds(given, 1.0),
            runs=values.count(given, "runs", 3, 1000),
            cpus=cpus,
            progress=progress,
        ),
    )
    console.print(pings_table(target.name, cpus, pinged))
    console.print(PINGS_LEGEND, style="dim", highlight=False, soft_wrap=True)
    if "json" in given:
        _write(given.json, [one.record() for one in pinged])


def _idle(given: argparse.Namespace, options: list[str], console: Console) -> None:
    from dataclasses import asdict

    from shadowbell.bench.idle import measure_idle
    from shadowbell.bench.tables import idle_table

    values.only(given, "idle", "doorbells", "poll_max_us", "time", "cpus", "json")
    counts = values.listed(given, "idle", "", values.number("--idle", 1, MAX_IDLE))
    (way, *more), (poll, *windows) = (
        values.ways(given, "auto"),
        values.listed(given, "poll_max_us", "adaptive", values.poll),
    )
    if more or windows or options:
        raise UserError("--idle takes one way, one polling window and no options after --")
    measured = _with_progress(
        console,
        lambda progress: measure_idle(
            counts,
            way=way,
            poll=poll,
            seconds=values.seconds(given, 5.0),
            cpus=values.cpus(given),
            progress=progress,
        ),
    )
    console.print(idle_table(way, measured))
    if "json" in given:
        _write(given.json, [asdict(one) | {"cpu_percent": one.cpu_percent} for one in measured])


def _guest(given: argparse.Namespace, options: list[str], console: Console) -> None:
    from dataclasses import asdict

    from shadowbell.bench import Socket, parse_target
    from shadowbell.bench.in_guest import measure_in_guest
    from shadowbell.bench.tables import guest_table

    values.only(given, "guest", "namespace", "against", "pause", "depth", "time", "runs", "json")
    others = values.listed(given, "against", "", parse_target) if "against" in given else []
    against = [other for other in others if isinstance(other, Socket)]
    for other in others:
        if other not in against:
            raise UserError(f"--guest --against takes running servers' sockets, not {other.name}")
    namespace = getattr(given, "namespace", "null:1T")
    measured, left_out = _with_progress(
        console,
        lambda progress: measure_in_guest(
            namespace,
            depths=values.listed(given, "depth", "1,32", values.depth),
            seconds=values.seconds(given, 3.0),
            runs=values.count(given, "runs", 1, 100),
            options=options,
            against=against,
            pause="pause" in given,
            progress=progress,
        ),
    )
    console.print(guest_table(namespace, measured))
    for line in left_out:
        console.print(line, style="dim", highlight=False, soft_wrap=True)
    if "json" in given:
        _write(given.json, [asdict(one) for one in measured])


def _write(path: str, results: list[dict[str, Any]]) -> None:
    from shadowbell import __version__
    from shadowbell.bench.process import machine
    from shadowbell.bench.report import write_json

    write_json(path, {"shadowbell": __version__, "machine": machine(), "results": results})


def _with_progress(console: Console, measure: Callable[[Progress], T]) -> T:
    # One line, written between measurements: a bar that moves would take the driver's processor.
    def show(text: str) -> None:
        if console.is_terminal:
            width = console.width - 1
            console.print(escape(text[:width]).ljust(width), end="\r", highlight=False)

    from rich.markup import escape

    try:
        return measure(show)
    finally:
        show("")
