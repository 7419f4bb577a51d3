"""Power failures without end: random workloads, many disks each (`make soak`).

Each round makes ext4 or XFS on a recorded namespace of 512 or 4096-byte blocks, runs a workload and
checks the disks that power failures could have left, of an honest disk and, as a proof that the
check looks, of one that lies. Keeps the image of what fails, and exits with 1.

    python tests/guest/hunt_power_failures.py --minutes 10 [--seed N] [--states 96] [--folder DIR]
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import get_args

from power_failure import EXT4, XFS, Laboratory, Life
from synced_files import Workload

from shadowbell.crash import Device, Granularity
from shadowbell.guest import GuestError, ServeError

LYING = 12
LIES = [device for device in get_args(Device) if device != "honest"]


class Found(Exception):
    """A file system didn't survive, or a lie wasn't noticed."""


def one_round(laboratory: Laboratory, chance: random.Random, states: int, keep: Path) -> Life:
    """Live, crash, look; raises Found."""
    workload = Workload(chance.getrandbits(60), workers=chance.randint(1, 3), steps=50)
    kind, lba = chance.choice((EXT4, XFS)), chance.choice((512, 4096))
    granularity: Granularity = chance.choice(get_args(Granularity))
    if kind is EXT4 and granularity == "block":
        lba = 4096  # in blocks of 512 its superblock can be torn, which it doesn't mount
    life = laboratory.live(kind, workload, lba)
    seed = chance.getrandbits(32)
    crashes = life.crashes(states, seed=seed, granularity=granularity)
    began, checked, replayed = time.monotonic(), 0, 0
    for verdict in laboratory.check(life, crashes):
        checked += 1
        replayed += verdict.replayed
        if verdict.wrong:
            verdict.state.write(keep)
            raise Found(f"{life.kind.name}, LBA {life.lba}, {granularity}: {verdict}\nkept: {keep}")
    seconds = time.monotonic() - began
    lie: Device = chance.choice(LIES)
    lying = life.crashes(LYING, seed=seed, granularity=granularity, device=lie)
    verdicts = list(laboratory.check(life, lying))
    caught = sum(bool(verdict.wrong) for verdict in verdicts)
    print(
        f"{life.kind.name}, LBA {life.lba}, {granularity}: {checked} disks of "
        f"{len(life.recording.changes)} changes and {len(life.recording.flushes)} flushes survived "
        f"({replayed} replayed a journal) in {seconds:.0f} s; {lie}: {caught} of {len(verdicts)} "
        "found out",
        flush=True,
    )
    if lie == "drops-flushes" and not caught:
        raise Found("nobody noticed that flushes were dropped")
    return life


def hunt(minutes: float, seed: int, states: int, folder: Path | None) -> Counter[str]:
    """Round after round; raises Found. Returns how often each file system survived a round."""
    chance = random.Random(seed)
    end = time.monotonic() + minutes * 60
    rounds: Counter[str] = Counter()
    keep = (folder or Path.cwd()) / f"crashed-{seed}.img"
    with (
        tempfile.TemporaryDirectory(prefix="shadowbell-power-", dir=folder) as scratch,
        Laboratory(Path(scratch)) as laboratory,
    ):
        while time.monotonic() < end:
            life = one_round(laboratory, chance, states, keep)
            rounds[life.kind.name] += 1
            life.log.unlink()
    return rounds


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--states", type=int, default=96, help="disks in each round")
    parser.add_argument("--folder", type=Path, default=None, help="where the images go")
    options = parser.parse_args()
    print(f"power failures for {options.minutes:g} minutes, seed {options.seed}", flush=True)
    try:
        rounds = hunt(options.minutes, options.seed, options.states, options.folder)
    except (Found, GuestError, ServeError, TimeoutError) as error:
        print(f"power failures: wrong: {error}", file=sys.stderr)
        return 1
    print(f"power failures: all that was synced survived {dict(rounds)} rounds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
