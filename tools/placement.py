"""Simulate hosts that serve the disks of one Ceph cluster, and lose some (`docs/scale-out.md`).

Nothing is measured here: disks with loads drawn from a heavy-tailed distribution are placed on
hosts, hosts fail, their disks are taken over by others. Three ways to choose a disk's host:

    pair    the disks of host 2n go to host 2n+1 and back: one stand-in for each host
    hash    rendezvous hashing: each disk has its own order of all hosts, and no state is kept
    least   the host with the least load at that moment, the heaviest disks first: needs a scheduler

    python tools/placement.py [--hosts 32] [--disks 4096] [--failures 0,1,2,4] [--rounds 40]
                              [--wait 10] [--takeover 0.5] [--parallel 8]

`--wait` and `--takeover`: seconds until a silent server is shut out, and that opening then takes;
`--parallel`: disks that one host takes over at a time.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Choose = Callable[[int, float, Sequence[float], Sequence[int], int], int]


@dataclass(frozen=True)
class Outcome:
    """Of one round: loads in multiples of the mean before the failure."""

    busiest: float
    moved: int  # disks that changed their host
    most_taken: int  # by one host
    seconds: float  # until the last disk is served again


def pair(disk: int, weight: float, loads: Sequence[float], alive: Sequence[int], hosts: int) -> int:
    own = disk % hosts
    return next(host for host in (own, own ^ 1, *alive) if host in alive)


def by_hash(
    disk: int, weight: float, loads: Sequence[float], alive: Sequence[int], hosts: int
) -> int:
    return max(alive, key=lambda host: hashlib.blake2s(b"%d %d" % (disk, host)).digest())


def least(
    disk: int, weight: float, loads: Sequence[float], alive: Sequence[int], hosts: int
) -> int:
    return min(alive, key=loads.__getitem__)


WAYS: dict[str, Choose] = {"pair": pair, "hash": by_hash, "least": least}


def simulate(choose: Choose, hosts: int, disks: int, failures: int, seed: int,
             options: argparse.Namespace) -> Outcome:  # fmt: skip
    draw = random.Random(seed)
    # Few disks do most of the work: the busiest tenth about half of it.
    weights = [draw.lognormvariate(0, 1.25) for _ in range(disks)]
    everyone = range(hosts)
    loads = [0.0] * hosts
    place = [0] * disks

    def put(disk: int, alive: Sequence[int]) -> int:
        host = choose(disk, weights[disk], loads, alive, hosts)
        loads[host] += weights[disk]
        place[disk] = host
        return host

    heaviest_first = sorted(range(disks), key=weights.__getitem__, reverse=True)
    for disk in heaviest_first:
        put(disk, everyone)
    lost = set(draw.sample(everyone, failures))
    alive = [host for host in everyone if host not in lost]
    moving = [disk for disk in heaviest_first if place[disk] in lost]
    taken = [0] * hosts
    for disk in moving:
        taken[put(disk, alive)] += 1
    rounds = math.ceil(max(taken) / options.parallel)
    return Outcome(
        busiest=max(loads[host] for host in alive) / (sum(weights) / hosts),
        moved=len(moving),
        most_taken=max(taken),
        seconds=options.wait + rounds * options.takeover if moving else 0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hosts", type=int, default=32)
    parser.add_argument("--disks", type=int, default=4096)
    parser.add_argument("--failures", default="0,1,2,4")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--wait", type=float, default=10)
    parser.add_argument("--takeover", type=float, default=0.5)
    parser.add_argument("--parallel", type=int, default=8)
    options = parser.parse_args()
    print("| hosts lost | way | disks moved | most by one host | busiest host | served again |")
    print("|---|---|---|---|---|---|")
    for failures in map(int, options.failures.split(",")):
        for name, choose in WAYS.items():
            found = [
                simulate(choose, options.hosts, options.disks, failures, seed, options)
                for seed in range(options.rounds)
            ]
            print(
                f"| {failures} | {name} | {statistics.mean(o.moved for o in found):.0f} "
                f"| {statistics.mean(o.most_taken for o in found):.0f} "
                f"| {statistics.mean(o.busiest for o in found):.2f} x "
                f"| {statistics.mean(o.seconds for o in found):.1f} s |"
            )


if __name__ == "__main__":
    main()
