"""Our RBD back end beside fio's rbd engine, on one cluster, in turn: A B A B, and the median ratio.

    python tests/ceph/measure.py [--seconds 6] [--pairs 3] [--depth 32] [--block-size 4096]

Both use the same image, which is written before, and the same options of librbd (its cache off).
Ours is the whole way: the driver on the socket, queues, the server, librbd.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess

from cluster import Cluster
from disks import MIB, SOCKET

from shadowbell.driver import Host, LoadSpec, run_load
from shadowbell.driver.load import Pattern
from shadowbell.guest import Served

PATTERNS: tuple[Pattern, ...] = ("randread", "randwrite")
SIZE = 256 * MIB


def ours(ceph: Cluster, pattern: Pattern, given: argparse.Namespace) -> float:
    spec = f"rbd:{ceph.of('measured')}?conf={ceph.conf}"
    with (
        Served([spec, "--socket", f"{{folder}}/{SOCKET}"]) as served,
        Host.connect(served.socket(SOCKET)) as host,
    ):
        queue = host.create_queue_pair(given.depth * 2, interrupts=True)
        load = LoadSpec(pattern=pattern, depth=given.depth, block_size=given.block_size, sleep=True)
        stats = run_load(host, [queue], load, seconds=given.seconds)
        if not stats.clean:
            raise SystemExit(f"our run went wrong: {stats}")
        return stats.iops


def fio(ceph: Cluster, pattern: Pattern, given: argparse.Namespace) -> float:
    command = [
        *("fio", "--name=job", "--ioengine=rbd", "--clientname=admin", f"--pool={ceph.POOL}"),
        *("--rbdname=measured", f"--rw={pattern}", f"--bs={given.block_size}", "--randrepeat=0"),
        *(
            f"--iodepth={given.depth}",
            "--time_based",
            f"--runtime={given.seconds}",
            "--norandommap",
        ),
        "--output-format=json",
    ]
    conf = ceph.folder / "fio.conf"
    conf.write_text(f"{ceph.conf.read_text()}rbd cache = false\n")  # the last section: [client]
    environment = os.environ | {"CEPH_CONF": str(conf)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    return float(job["write" if pattern == "randwrite" else "read"]["iops"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=6)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--block-size", type=int, default=4096)
    given = parser.parse_args()
    with Cluster() as ceph:
        ceph.create_image("measured", SIZE)
        written = ("bench", "--io-type", "write", "--io-size", "4M", "--io-pattern", "seq")
        ceph.rbd(*written, "--io-threads", "4", "--io-total", str(SIZE), ceph.of("measured"))
        print(
            "| work | shadowbell IOPS | fio IOPS | ratio, median | ratios |\n|---|---|---|---|---|"
        )
        for pattern in PATTERNS:
            pairs = [
                (ours(ceph, pattern, given), fio(ceph, pattern, given)) for _ in range(given.pairs)
            ]
            ratios = [own / other for own, other in pairs]
            print(
                f"| {pattern} {given.block_size} B, QD{given.depth} "
                f"| {statistics.median(own for own, _ in pairs):.0f} "
                f"| {statistics.median(other for _, other in pairs):.0f} "
                f"| {statistics.median(ratios):.2f} "
                f"| {', '.join(f'{ratio:.2f}' for ratio in ratios)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
