"""Kill the server under load, again and again: what it completed has to be there (`make soak`).

Each round attaches to a served file, drives several queues with verified reads and writes, another
with FUA writes and flushes and a third with zeroing, kills the server (SIGKILL) at a random moment,
starts it again and reads every block. A killed process leaves the host's page cache alone, so each
completed write has to be there, flushed or not; one under way may be there or not, block by block.
Exits with 1 at the first thing that is wrong.

    python tests/kill.py --kills 100 [--seed N] [--lba 512] [--folder DIR]
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from shadowbell.driver import (
    CommandError,
    DeviceGone,
    Host,
    Load,
    LoadSpec,
    LoadStats,
    QueuePair,
    Verifier,
    run_load,
)
from shadowbell.guest import Served
from shadowbell.guest.served import ServeError

SIZE = 64 << 20
LOADS = 3
PARTS = LOADS + 2
"""The disk in parts: one for each load, one for FUA and flush, one for zeroing."""


class Wrong(Exception):
    """Something completed isn't there, or the device did what it must not."""


class Zeroed:
    """Blocks that are written with noise and zeroed in turn, and what they may hold."""

    def __init__(self, first: int, lba: int) -> None:
        self.first, self.lba = first, lba
        self.may: list[set[bytes]] = [{bytes(lba)} for _ in range(64)]

    def churn(self, queue: QueuePair, chance: random.Random) -> None:
        """Until the server is gone."""
        while True:
            block, blocks = chance.randrange(56), chance.randint(1, 8)
            data = chance.randbytes(blocks * self.lba)
            zeroes = chance.random() < 0.5
            new = [
                bytes(self.lba) if zeroes else data[n * self.lba : (n + 1) * self.lba]
                for n in range(blocks)
            ]
            for n, content in enumerate(new):
                self.may[block + n].add(content)
            if zeroes:
                queue.write_zeroes(1, self.first + block, blocks, deallocate=chance.random() < 0.5)
            else:
                queue.write(1, self.first + block, data)
            for n, content in enumerate(new):
                self.may[block + n] = {content}

    def check(self, queue: QueuePair) -> None:
        for n, may in enumerate(self.may):
            found = queue.read(1, self.first + n, 1)
            if found not in may:
                kinds = sorted("noise" if any(content) else "zeros" for content in may)
                raise Wrong(
                    f"block {self.first + n} lost what was completed: it holds "
                    f"{'noise' if any(found) else 'zeros'}, not one of {kinds}"
                )
            self.may[n] = {found}


class Disk:
    """The served disk and what it should hold."""

    def __init__(self, lba: int) -> None:
        self.lba = lba
        self.part = SIZE // lba // PARTS
        self.verifier = Verifier(SIZE // lba, lba)
        self.zeroed = Zeroed((LOADS + 1) * self.part, lba)
        self.ios = self.forced = self.flushes = 0
        self.last = range(0)
        """The last FUA or flushed write."""

    def force(self, queue: QueuePair, chance: random.Random) -> None:
        """FUA writes and flushes until the server is gone."""
        first = LOADS * self.part
        while True:
            lba, blocks = first + chance.randrange(self.part - 16), chance.randint(1, 16)
            data = bytearray(blocks * self.lba)
            self.last = range(lba, lba + blocks)
            self.verifier.prepare(lba, data)
            queue.write(1, lba, data, fua=chance.random() < 0.5)
            self.verifier.confirm(lba, blocks)
            self.forced += 1
            if chance.random() < 0.3:
                queue.flush(chance.choice((1, 0xFFFFFFFF)))
                self.flushes += 1

    def check(self, socket: Path) -> None:
        """Read it all."""
        with Host.connect(socket, timeout=20) as host:
            queue = host.create_queue_pair(64)
            self.zeroed.check(queue)
            size = 65536
            spec = LoadSpec(pattern="read", block_size=size, depth=8)
            stats = run_load(host, [queue], spec, ios=SIZE // size, verifier=self.verifier)
            if stats.mismatches:
                block = stats.first_mismatch
                found = struct.unpack_from("<QQ", queue.read(1, block, 1))
                raise Wrong(
                    f"block {block} (part {block // self.part}, write of blocks {self.last}) holds "
                    f"(block, generation) {found}, completed and begun: "
                    f"{self.verifier.expects(block)}; {stats.mismatches} such reads"
                )
            if not stats.clean:
                raise Wrong(str(stats))


def one_round(served: Served, disk: Disk, chance: random.Random) -> None:
    """Load, kill, start, check."""
    socket = served.socket("disk.sock")
    host = Host.connect(socket, timeout=20)
    loads = []
    for number in range(LOADS):
        sizes = [size for size in (512, 4096, 16384, 131072) if size >= disk.lba]
        spec = LoadSpec(
            pattern=chance.choice(("randrw", "randwrite", "write")),
            block_size=chance.choice(sizes),
            depth=chance.choice((1, 8, 32)),
            first=number * disk.part,
            length=disk.part // 256 * 256,
            seed=chance.getrandbits(60),
        )
        loads.append(Load(host, [host.create_queue_pair(64)], spec, verifier=disk.verifier))
    forcing, zeroing = host.create_queue_pair(8), host.create_queue_pair(8)
    failures: list[BaseException] = []
    found: list[LoadStats] = []

    def until_gone(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except DeviceGone:
                pass
            except BaseException as error:
                failures.append(error)

        return run

    def load(each: Load) -> None:
        found.append(each.run(seconds=60, stall=30))

    work: list[Callable[[], object]] = [
        lambda: disk.force(forcing, random.Random(chance.random())),
        lambda: disk.zeroed.churn(zeroing, random.Random(chance.random())),
        *(lambda each=each: load(each) for each in loads),
    ]
    threads = [threading.Thread(target=until_gone(each)) for each in work]
    for thread in threads:
        thread.start()
    time.sleep(chance.uniform(0.02, 0.4))
    served.kill()
    for queue in host.queues.values():
        queue.ring.kill()
    for thread in threads:
        thread.join()
    host.detach(shut_down=False)
    for stats in found:
        disk.ios += stats.ios
        if stats.errors or stats.mismatches or stats.violations or stats.stalled:
            raise Wrong(str(stats))
    if failures:
        raise failures[0]
    served.start()
    disk.check(socket)


def kill(kills: int, seed: int, lba: int, folder: Path) -> Disk:
    """Run it all; raises Wrong."""
    chance = random.Random(seed)
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(SIZE)
    disk = Disk(lba)
    arguments = [f"file:{image},lba={lba}", "--socket", "{folder}/disk.sock", "--iothreads", "2"]
    with Served(arguments) as served:
        for number in range(kills):
            one_round(served, disk, chance)
            if number % 10 == 9:
                print(f"{number + 1} kills: {disk.ios:,} I/Os", flush=True)
        if served.stop():
            raise Wrong("the server doesn't end cleanly")
    return disk


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--lba", type=int, choices=(512, 4096), default=512)
    parser.add_argument("--folder", type=Path, default=None, help="where the image goes")
    options = parser.parse_args()
    print(f"{options.kills} kills, seed {options.seed}, LBA {options.lba}", flush=True)
    try:
        with tempfile.TemporaryDirectory(prefix="shadowbell-kill-", dir=options.folder) as folder:
            disk = kill(options.kills, options.seed, options.lba, Path(folder))
    except (Wrong, ServeError, CommandError, TimeoutError, OSError) as error:
        print(f"kill: wrong: {error}", file=sys.stderr)
        return 1
    print(
        f"kill: nothing completed was lost in {options.kills} kills: {disk.ios:,} I/Os, "
        f"{disk.forced:,} more of which FUA or flushed by {disk.flushes:,} flushes"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
