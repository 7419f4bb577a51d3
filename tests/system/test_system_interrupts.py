"""A driver that sleeps on its eventfd, and looks into its queue once for each interrupt.

That is what Linux does. It hunts for lost interrupts: a completion without one is found by a
watchdog alone. `make soak` does the same with millions of commands.
"""

from __future__ import annotations

import itertools

import pytest

from serving import SERVE, Attach, Serve
from shadowbell.driver import Doorbells, Host, LoadSpec, LoadStats, QueuePair, run_load
from shadowbell.nvme import Feature

DEPTHS = (1, 2, 3, 7, 32, 64, 127, 128)
WATCHDOG = 10.0
WAYS: dict[str, Doorbells] = {
    "trap": "trap",
    "shadow": "shadow",
    "ioeventfd": "shadow",
    "mapped": "mapped",
}
EIGHT_OR_100_US = 7 | 1 << 8

pytestmark = pytest.mark.usefixtures("alarm")


def hunt(host: Host, queues: list[QueuePair], depth: int, ios: int, nsid: int = 1) -> LoadStats:
    spec = LoadSpec(nsid=nsid, depth=depth, sleep=True, watchdog=WATCHDOG, block_size=512)
    stats = run_load(host, queues, spec, ios=ios)
    assert stats.missed == 0, stats
    assert stats.clean, stats
    return stats


@pytest.mark.parametrize("poll", ["0", "32"])
@pytest.mark.parametrize("bell", ["trap", "shadow", "ioeventfd", "mapped"])
def test_no_interrupt_is_lost(serve: Serve, attach: Attach, bell: str, poll: str) -> None:
    way = WAYS[bell]
    served = serve("null:1G", "memory:16M", "--poll-max-us", poll, *SERVE[way])
    host = attach(served, way, ioeventfds=bell == "ioeventfd")
    queue = host.create_queue_pair(256, interrupts=True)
    for coalescing in (0, EIGHT_OR_100_US):
        host.admin.set_feature(Feature.INTERRUPT_COALESCING, coalescing)
        for nsid, depth in itertools.product((1, 2), DEPTHS):
            hunt(host, [queue], depth, 60 * depth + 300, nsid)


def test_of_a_file(serve: Serve, attach: Attach) -> None:
    host = attach(serve("file:{folder}/disk.img", image=16 << 20))
    queue = host.create_queue_pair(256, interrupts=True)
    for depth in DEPTHS:
        hunt(host, [queue], depth, 1000 + 20 * depth)


def test_of_queues_that_share_a_vector(serve: Serve, attach: Attach) -> None:
    host = attach(serve("null:1G", "--iothreads", "2"))
    queues = [host.create_queue_pair(64, interrupts=True, vector=5) for _ in range(4)]
    queues.append(host.create_queue_pair(64, share=queues[0].completions))
    hunt(host, queues, 20, 20_000)


def test_the_time_bounds_a_lone_command(serve: Serve, attach: Attach) -> None:
    """Base 2.0, 5.27.1.6: too few for the threshold come when the time is over."""
    host = attach(serve("null:1G"))
    host.admin.set_feature(Feature.INTERRUPT_COALESCING, 0xFF | 20 << 8)
    queue = host.create_queue_pair(64, interrupts=True)
    stats = hunt(host, [queue], 4, 200)
    assert stats.interrupts <= 60
    assert stats.percentile(50) > 2000 * 0.99


def test_the_threshold_is_what_an_interrupt_stands_for(serve: Serve, attach: Attach) -> None:
    """0's based: 15 means 16 entries; and a vector with Coalescing Disable has none of it."""
    host = attach(serve("null:1G"))
    host.admin.set_feature(Feature.INTERRUPT_COALESCING, 15 | 255 << 8)
    queue = host.create_queue_pair(64, interrupts=True)
    stats = hunt(host, [queue], 16, 1600)
    assert stats.interrupts <= 100 + 1
    vector = queue.completions.vector
    assert vector is not None
    host.admin.set_feature(Feature.INTERRUPT_VECTOR_CONFIGURATION, vector | 1 << 16)
    stats = hunt(host, [queue], 1, 300)
    assert stats.percentile(50) < 25_000


@pytest.mark.parametrize("namespace", ["null:1G", "memory:64M"])
def test_few_interrupts_at_depth(serve: Serve, attach: Attach, namespace: str) -> None:
    host = attach(serve(namespace), "shadow")
    queue = host.create_queue_pair(128, interrupts=True)
    spec = LoadSpec(pattern="randread", depth=32, sleep=True)
    stats = run_load(host, [queue], spec, ios=50_000)
    assert stats.clean, stats
    assert stats.per_io(stats.interrupts) < 0.2
