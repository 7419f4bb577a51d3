"""Minutes of mixed, verified load with resets, queue deletions and disconnects (`make soak`).

One server process serves a controller for each doorbell way, on memory and on a file, and moves
their queues between its IOThreads at random all the while. A thread for each controller drives it
in rounds: attach, queues, loads, something bad, again. Others hunt for a lost interrupt: drivers
that sleep on their eventfds and look for nothing by themselves. After every lap all clients leave,
and the server must be as it was after the first: the same descriptors, mappings and live objects.
At the end every block is read once more. Exits with 1 at the first thing that is wrong.

    python tests/soak.py --minutes 10 [--seed N] [--hunt]

--hunt: the hunt alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from shadowbell.bench.process import resident_bytes
from shadowbell.driver import (
    DeviceGone,
    Doorbells,
    Host,
    Load,
    LoadSpec,
    LoadStats,
    QueuePair,
    Verifier,
    run_load,
)
from shadowbell.driver.load import Pattern
from shadowbell.errors import UserError
from shadowbell.guest import Served, ServeError
from shadowbell.nvme import Feature

if TYPE_CHECKING:
    from shadowbell.manage import Server

LAP = 20.0
SIZE = 64 << 20
OF_CLIENTS = ("channels", "mappings", "queues")
EVENTS = ("none", "none", "reset", "device reset", "delete", "disconnect")
WATCHDOG = 10.0
# Interrupt Coalescing: off, and threshold | time << 8.
COALESCING = (0, 0, 3 | 1 << 8, 31 | 1 << 8, 255 | 2 << 8)
PATTERNS: tuple[Pattern, ...] = ("randrw", "randrw", "randread", "randwrite", "read", "write")


class Wrong(Exception):
    """The device did what it must not."""


@dataclass
class Target:
    """A controller and what its blocks should hold."""

    socket: Path
    ways: tuple[Doorbells, ...]
    verifier: Verifier | None = None
    hunted: bool = False
    ios: int = 0
    rounds: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Inventory:
    """What the server holds; equal at rest, lap after lap."""

    descriptors: int
    client_mappings: int
    live: dict[str, int]


def server(report: str, arguments: list[str]) -> int:
    """Be the server: `shadowbell serve`, queues that move, live objects as JSON at SIGUSR2."""
    from shadowbell.cli import main
    from shadowbell.dataplane import live_objects
    from shadowbell.manage import Server

    def tell(signum: int, frame: FrameType | None) -> None:
        Path(report + ".new").write_text(json.dumps(live_objects()))
        os.replace(report + ".new", report)

    run = Server.run

    def run_and_move(server: Server) -> None:
        threading.Thread(target=move_queues, args=(server,), daemon=True).start()
        run(server)

    Server.run = run_and_move  # type: ignore[method-assign]
    signal.signal(signal.SIGUSR2, tell)
    return main(["serve", *arguments])


def move_queues(server: Server) -> None:
    """Move any queue to any IOThread, for ever."""
    chance = random.Random()
    sockets = [controller.socket for controller in server.config.controllers]
    while True:
        with contextlib.suppress(UserError):  # no such queue now
            server.move_queue(
                chance.randint(1, 3),
                chance.randrange(server.config.iothreads),
                controller=chance.choice(sockets),
            )
        time.sleep(chance.choice((0, 0.0005, 0.005, 0.05)))


class Soaked(Served):
    """The server process, with a controller for each target."""

    def __init__(self, *, hunt: bool) -> None:
        controllers = (
            ("memory.sock", f"memory:{SIZE}", ()),
            ("file.sock", "file:{folder}/disk.img,lba=4096", ()),
            ("mapped.sock", f"memory:{SIZE}", ("--doorbells", "mapped", "--no-dbbuf")),
            ("hunt-null.sock", "null:1G", ()),
            ("hunt-memory.sock", f"memory:{SIZE}", ()),
        )
        arguments: list[str] = []
        for name, namespace, options in controllers:
            arguments += ["--and"] if arguments else ["--iothreads", "2"]
            arguments += [namespace, "--socket", f"{{folder}}/{name}", *options]
        super().__init__(
            ["{folder}/live.json", *arguments], program=(sys.executable, __file__, "--server")
        )
        self._report = self.folder / "live.json"
        with (self.folder / "disk.img").open("wb") as image:
            image.truncate(SIZE)
        self.targets = [
            Target(self.socket("memory.sock"), ("trap", "shadow", "shadow")),
            Target(self.socket("file.sock"), ("trap", "shadow", "shadow")),
            Target(self.socket("mapped.sock"), ("mapped",)),
            Target(self.socket("hunt-null.sock"), ("trap", "shadow", "shadow"), hunted=True),
            Target(self.socket("hunt-memory.sock"), ("trap", "shadow", "shadow"), hunted=True),
        ]
        self.targets = [target for target in self.targets if target.hunted or not hunt]

    def inventory(self) -> Inventory:
        """What it holds now."""
        self._report.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR2)
        if not self._wait_until(self._report.exists, 10):
            raise Wrong("the server doesn't answer")
        return Inventory(
            len(os.listdir(f"/proc/{self.pid}/fd")),
            Path(f"/proc/{self.pid}/maps").read_text().count("shadowbell-driver"),
            json.loads(self._report.read_text()),
        )

    def resident(self) -> int:
        """Resident MiB."""
        return resident_bytes(self.pid) >> 20


def check(stats: LoadStats, *, broken: bool) -> None:
    """A load may lose commands only when something was taken away from under it."""
    wrong = stats.mismatches or stats.violations or stats.stalled or stats.missed
    if wrong or (not broken and not stats.clean):
        raise Wrong(f"broken={broken}: {stats}")


def one_round(target: Target, chance: random.Random) -> None:
    """Attach, run loads, and have one event happen to them."""
    host = Host.connect(target.socket, doorbells=chance.choice(target.ways), timeout=20)
    event = chance.choice(EVENTS)
    target.rounds[event] = target.rounds.get(event, 0) + 1
    try:
        namespace = host.namespaces[1]
        if target.verifier is None:
            target.verifier = Verifier(namespace.blocks, namespace.lba_size)
        entries = [chance.choice((2, 3, 5, 17, 64, 128, 1024)) for _ in range(chance.randint(1, 3))]
        queues = [host.create_queue_pair(n, interrupts=chance.random() < 0.7) for n in entries]
        loads = []
        for number, queue in enumerate(queues):
            length = namespace.blocks // len(queues)
            sizes = [s for s in (512, 4096, 8192, 65536, 262144) if s >= namespace.lba_size]
            spec = LoadSpec(
                pattern=chance.choice(PATTERNS),
                block_size=chance.choice(sizes),
                depth=min(chance.choice((1, 2, 8, 32, 64)), queue.ring.room),
                first=number * length,
                length=length,
                seed=chance.getrandbits(60),
                sleep=queue.completions.vector is not None,
                watchdog=WATCHDOG if queue.completions.vector is not None else 0,
                write_percent=chance.choice((10, 50, 90)),
            )
            loads.append(Load(host, [queue], spec, verifier=target.verifier))
        run_with_event(target, host, queues, loads, event, chance)
        if event != "disconnect":
            extra = host.create_queue_pair(8)
            extra.flush(1)
            host.delete_queue_pair(extra)
    finally:
        host.detach(shut_down=event == "none")


def hunt_round(target: Target, chance: random.Random) -> None:
    """Attach, and sleep through loads of all depths with and without coalescing."""
    way = chance.choice(target.ways)
    host = Host.connect(target.socket, doorbells=way, ioeventfds=chance.random() < 0.5, timeout=20)
    target.rounds[way] = target.rounds.get(way, 0) + 1
    try:
        queues = [
            host.create_queue_pair(chance.choice((130, 200, 256)), interrupts=True)
            for _ in range(chance.choice((1, 1, 2)))
        ]
        for _ in range(8):
            host.admin.set_feature(Feature.INTERRUPT_COALESCING, chance.choice(COALESCING))
            spec = LoadSpec(
                pattern=chance.choice(PATTERNS),
                block_size=chance.choice((512, 4096, 4096, 16384)),
                depth=chance.choice((1, 2, 3, 5, 8, 16, 32, 64, 127, 128)),
                seed=chance.getrandbits(60),
                sleep=True,
                watchdog=WATCHDOG,
            )
            stats = Load(host, queues, spec).run(seconds=chance.uniform(0.05, 0.4), stall=60)
            check(stats, broken=False)
            target.ios += stats.ios
    finally:
        host.detach(shut_down=False)


def run_with_event(
    target: Target,
    host: Host,
    queues: list[QueuePair],
    loads: list[Load],
    event: str,
    chance: random.Random,
) -> None:
    """Run the loads, each in its thread, and check what came of them."""
    found: list[LoadStats | None] = [None] * len(loads)
    seconds = chance.uniform(0.2, 1.5)

    def run(number: int) -> None:
        found[number] = loads[number].run(seconds=seconds, stall=30)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(loads))]
    for thread in threads:
        thread.start()
    time.sleep(seconds * chance.random())
    if event in ("reset", "device reset"):
        host.reset(device=event == "device reset")
    elif event == "delete":
        queues[0].ring.kill()
        host.delete_queue_pair(queues[0])
    elif event == "disconnect":
        host.detach(shut_down=False)
    for thread in threads:
        thread.join()
    for number, stats in enumerate(found):
        if stats is None:
            raise Wrong("a load failed, see above")
        check(stats, broken=event not in ("none", "delete") or (event == "delete" and number == 0))
        target.ios += stats.ios


def lap(targets: Sequence[Target], seed: int, seconds: float) -> None:
    """Drive every target for some seconds; raises what one of them raised."""
    failures: list[BaseException] = []
    end = time.monotonic() + seconds

    def drive(target: Target, number: int) -> None:
        chance = random.Random(f"{seed}/{number}")
        try:
            while time.monotonic() < end and not failures:
                (hunt_round if target.hunted else one_round)(target, chance)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=drive, args=(target, n)) for n, target in enumerate(targets)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def at_rest(served: Soaked, before: Inventory | None) -> Inventory:
    """The inventory once the server has taken note of every departure."""
    end = time.monotonic() + 10
    while True:
        now = served.inventory()
        # Of clients nothing may be left; what stays is what was there before them.
        gone = now.client_mappings == 0 and not any(now.live[name] for name in OF_CLIENTS)
        if gone and (before is None or now == before):
            return now
        if time.monotonic() > end:
            raise Wrong(f"leaked: {now} instead of {before}")
        time.sleep(0.2)


def verify_all(target: Target) -> None:
    """Read every block once more."""
    with Host.connect(target.socket, timeout=20) as host:
        queue = host.create_queue_pair(64)
        size = 131072
        spec = LoadSpec(pattern="read", block_size=size, depth=8)
        stats = run_load(host, [queue], spec, ios=SIZE // size, verifier=target.verifier)
        check(stats, broken=False)


def soak(minutes: float, seed: int, *, hunt: bool) -> None:
    """Run it all, or the hunt; raises Wrong."""
    with Soaked(hunt=hunt) as served:
        try:
            soak_served(served, minutes, seed)
            if code := served.stop():
                raise Wrong(f"the server ended with {code}")
        except BaseException:
            print(f"the server's log ends:\n{served.log[-4000:]}", file=sys.stderr)
            raise


def soak_served(served: Soaked, minutes: float, seed: int) -> None:
    """Lap after lap, then a look at every block."""
    end = time.monotonic() + minutes * 60
    before: Inventory | None = None
    resident = number = 0
    while time.monotonic() < end:
        number += 1
        lap(served.targets, seed * 1000 + number, LAP)
        before = at_rest(served, before)
        resident = resident or served.resident()
        ios = sum(target.ios for target in served.targets)
        print(f"lap {number}: {ios:,} I/Os, {served.resident()} MiB, {before}", flush=True)
        if served.resident() > resident + 32 + SIZE * 2 // (1 << 20):
            raise Wrong(f"the server grew from {resident} to {served.resident()} MiB")
    for target in served.targets:
        if not target.hunted:
            verify_all(target)
        print(f"{target.socket.name}: {target.ios:,} I/Os, rounds {target.rounds}")
    at_rest(served, before)


def main() -> int:
    """Parse the arguments and run."""
    if sys.argv[1:2] == ["--server"]:
        return server(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--hunt", action="store_true", help="for lost interrupts alone")
    options = parser.parse_args()
    print(f"soak of {options.minutes:g} minutes, seed {options.seed}", flush=True)
    try:
        soak(options.minutes, options.seed, hunt=options.hunt)
    except (Wrong, ServeError, TimeoutError, DeviceGone) as error:
        print(f"soak: wrong: {error}", file=sys.stderr)
        return 1
    print("soak: nothing lost, nothing leaked")
    return 0


if __name__ == "__main__":
    sys.exit(main())
