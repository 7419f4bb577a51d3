"""`shadowbell bench`: the userspace driver as load generator, and what it measures beside it.

`sweep` measures loads on one target, or on two in turn; `idle` what attached controllers cost when
nothing happens; `pings` waking a sleeping device beside a bare round trip; `in_guest` fio in a
Linux guest on this disk and on QEMU's own. Every figure is one command's: nothing is kept between
runs.
"""

from shadowbell.bench.measure import Measured, Point
from shadowbell.bench.sweep import Sweep, run_sweep
from shadowbell.bench.target import Served, Socket, Target, parse_target

__all__ = [
    "Measured",
    "Point",
    "Served",
    "Socket",
    "Sweep",
    "Target",
    "parse_target",
    "run_sweep",
]
