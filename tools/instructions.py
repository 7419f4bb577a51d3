"""Instructions per command, by function of the data plane, counted by valgrind's callgrind.

    PYTHONPATH=src python tools/instructions.py            # or with an installed shadowbell

The server runs under callgrind, our own driver beside it without. Counted is what the IOThread's
loop does, twice with different numbers of commands: the difference is the commands'. Valgrind slows
the server some fifty times down, but not the driver, so what is found in vain while polling is less
than it is in life; the calls for each command tell how much there is.

Valgrind (3.19) lets no other thread run while one waits in io_uring_enter(), so that the server
would never listen. With a preloaded library the thread looks at its ring between short sleeps.
"""

from __future__ import annotations

import argparse
import collections
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from shadowbell.driver import Host, LoadSpec, run_load

FEW, MANY = 5_000, 55_000  # commands
START_SECONDS = 120
LOOP = "__pyx_f_10shadowbell_9dataplane_4loop_run"

WAITING = r"""
#include <errno.h>
#include <liburing.h>
#include <time.h>

static int wait_for(struct io_uring *ring, long microseconds)
{
    const struct timespec pause = {.tv_nsec = 100000};
    int submitted = io_uring_submit(ring);
    while (submitted >= 0 && !io_uring_cq_ready(ring)) {
        if (microseconds < 0)
            return -ETIME;
        microseconds -= 100;
        nanosleep(&pause, NULL);
        io_uring_get_events(ring);
    }
    return submitted;
}

int io_uring_submit_and_wait(struct io_uring *ring, unsigned count)
{
    return wait_for(ring, 1L << 50);
}

int io_uring_submit_and_wait_timeout(struct io_uring *ring, struct io_uring_cqe **cqe,
                                     unsigned count, struct __kernel_timespec *ts, sigset_t *mask)
{
    return wait_for(ring, ts->tv_sec * 1000000 + ts->tv_nsec / 1000);
}
"""


class Cost(NamedTuple):
    instructions: int = 0  # the function's own
    calls: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("--namespace", nargs="+", default=["null:1G", "memory:64M"])
    parser.add_argument("--depth", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--least", type=float, default=0.5, help="instructions worth a line")
    options = parser.parse_args()
    if shutil.which("valgrind") is None:
        sys.exit("valgrind isn't there: apt-get install valgrind")
    for namespace in options.namespace:
        for depth in options.depth:
            few = count(namespace, depth, FEW)
            show(namespace, depth, few, count(namespace, depth, MANY), options.least)
    return 0


def count(namespace: str, depth: int, commands: int) -> dict[str, Cost]:
    """What so many reads of 4 KiB cost, and what the loop did before and after them."""
    with tempfile.TemporaryDirectory() as folder:
        out, socket = Path(folder) / "callgrind.out", Path(folder) / "disk.sock"
        waiting = build_waiting(Path(folder))
        server = subprocess.Popen(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}",
             f"--toggle-collect={LOOP}", sys.executable, "-m", "shadowbell", "serve", namespace,
             "--socket", str(socket), "--no-control"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=os.environ | {"LD_PRELOAD": str(waiting)},
        )  # fmt: skip
        try:
            end = time.monotonic() + START_SECONDS
            while not socket.exists():
                if server.poll() is not None or time.monotonic() > end:
                    sys.exit("the server doesn't start under valgrind")
                time.sleep(0.1)
            host = Host.connect(socket, doorbells="shadow")
            spec = LoadSpec(depth=depth)
            stats = run_load(host, [host.create_queue_pair(256)], spec, ios=commands)
            host.detach()
            if not stats.clean or stats.ios != commands:
                sys.exit(f"the load went wrong: {stats}")
        finally:
            server.terminate()
            try:
                server.wait(START_SECONDS)
            finally:
                server.kill()
        return read(out)


def build_waiting(folder: Path) -> Path:
    source, library = folder / "waiting.c", folder / "waiting.so"
    source.write_text(WAITING)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O2", "-D_GNU_SOURCE", source, "-o", library, "-luring"],
        check=True,
    )
    return library


def read(out: Path) -> dict[str, Cost]:
    """Each function's own instructions and its calls, from callgrind's file."""
    names: dict[str, str] = {}
    own: collections.Counter[str] = collections.Counter()
    calls: collections.Counter[str] = collections.Counter()
    function, inclusive = "", False

    def name(text: str) -> str:
        number, _, words = text.partition(" ")
        return names.setdefault(number, words) if words else names[number]

    for line in out.read_text().splitlines():
        key, found, value = line.partition("=")
        if found and key == "fn":
            function = name(value)
        elif found and key == "cfn":
            called = name(value)
        elif found and key == "calls":
            calls[called] += int(value.split()[0])
            inclusive = True  # the next line is what was spent there
        elif re.match(r"[+\-*\d]", line):
            if not inclusive:
                own[function] += int(line.split()[-1])
            inclusive = False
    return {each: Cost(own[each], calls[each]) for each in own}


def show(
    namespace: str, depth: int, few: dict[str, Cost], many: dict[str, Cost], least: float
) -> None:
    commands = MANY - FEW
    rows = []
    for function, cost in many.items():
        before = few.get(function, Cost())
        instructions = (cost.instructions - before.instructions) / commands
        calls = (cost.calls - before.calls) / commands
        rows.append((instructions, calls, plain(function)))
    print(f"\n{namespace}, QD{depth}: {sum(row[0] for row in rows):.0f} instructions a command\n")
    print("| function | instructions a command | calls a command | instructions a call |")
    print("|---|---|---|---|")
    for instructions, calls, function in sorted(rows, reverse=True):
        if instructions >= least:
            each = f"{instructions / calls:.0f}" if calls > 1e-4 else "-"
            print(f"| `{function}` | {instructions:.1f} | {calls:.3f} | {each} |")


def plain(symbol: str) -> str:
    """`queues.serve` of Cython's __pyx_f_10shadowbell_9dataplane_6queues_serve."""
    found = re.match(r"__pyx_f_10shadowbell_\d+(dataplane|block)_(\d+)(\w+)", symbol)
    if found is None:
        return symbol.partition("@")[0].partition("'")[0]
    length, rest = int(found[2]), found[3]
    return f"{rest[:length]}.{rest[length:].lstrip('_')}"


if __name__ == "__main__":
    sys.exit(main())
