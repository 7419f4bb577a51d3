"""The three ways to ring, their cost, and that none of them loses anything."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving import SERVE, Attach, Serve
from shadowbell.driver import Doorbells, LoadSpec, LoadStats, QueuePair, Verifier, run_load
from shadowbell.driver.host import Host
from shadowbell.errors import UserError

ENTRIES = [2, 3, 5, 17, 33, 64, 100, 1023, 4096]


def check(stats: LoadStats) -> LoadStats:
    assert stats.clean, stats
    return stats


@pytest.mark.parametrize("interrupts", [False, True], ids=["polled", "interrupts"])
def test_mixed_load_verifies(
    serve: Serve, attach: Attach, way: Doorbells, interrupts: bool
) -> None:
    host = attach(serve("memory:64M", *SERVE[way]), way)
    queue = host.create_queue_pair(128, interrupts=interrupts)
    verifier = Verifier(host.namespaces[1].blocks, 512)
    for depth in (1, 2, 32, 127):
        spec = LoadSpec(pattern="randrw", depth=depth, sleep=interrupts, seed=depth)
        stats = check(run_load(host, [queue], spec, seconds=0.3, verifier=verifier))
        assert stats.ios > 100
        assert bool(stats.registers) == (way == "trap") or way == "shadow"
        assert bool(stats.stores) == (way == "mapped")
        if interrupts:
            assert 0 < stats.interrupts <= stats.ios + 1
        else:
            assert stats.interrupts == 0


@pytest.mark.parametrize("entries", ENTRIES)
def test_odd_queue_sizes_wrap(serve: Serve, attach: Attach, way: Doorbells, entries: int) -> None:
    host = attach(serve("memory:16M", *SERVE[way]), way)
    queue = host.create_queue_pair(entries)
    verifier = Verifier(host.namespaces[1].blocks, 512)
    for depth in {1, entries // 2, entries - 1} - {0}:
        if depth > 1024:
            continue
        spec = LoadSpec(pattern="randrw", depth=depth, block_size=512)
        ios = max(8 * entries, 500) if entries > 8 else 2000
        check(run_load(host, [queue], spec, ios=ios, verifier=verifier))


def test_few_register_writes_with_shadow_doorbells(serve: Serve, attach: Attach) -> None:
    host = attach(serve("memory:64M"), "shadow")
    assert host.shadowed
    queue = host.create_queue_pair(128)
    spec = LoadSpec(pattern="randread", depth=32)
    run_load(host, [queue], spec, seconds=0.2)
    stats = check(run_load(host, [queue], spec, seconds=1))
    assert stats.per_io(stats.registers + stats.wakeups) < 0.05
    assert stats.stores == 0


def test_sleeping_device_is_woken_by_one_doorbell(serve: Serve, attach: Attach) -> None:
    served = serve("memory:64M", "--poll-max-us", "0")
    host = attach(served, "shadow")
    queue = host.create_queue_pair(32, interrupts=True)
    spec = LoadSpec(pattern="randread", depth=1, sleep=True)
    stats = check(run_load(host, [queue], spec, ios=2000))
    # Each command finds the device asleep; each ends with one of the two doorbells rung.
    assert stats.per_io(stats.registers + stats.wakeups) < 2.1


def test_ioeventfds_are_optional(serve: Serve, attach: Attach) -> None:
    host = attach(serve("memory:64M"), "shadow", ioeventfds=False)
    queue = host.create_queue_pair(32)
    stats = check(run_load(host, [queue], LoadSpec(depth=4), ios=5000))
    assert stats.wakeups == 0


def test_ways_that_are_not_offered_are_refused(serve: Serve, attach: Attach) -> None:
    served = serve("memory:16M", "--no-dbbuf")
    with pytest.raises(UserError, match="no-dbbuf"):
        attach(served, "shadow")
    with pytest.raises(UserError, match="mapped"):
        attach(served, "mapped")
    host = attach(served, "auto")
    assert not host.shadowed
    assert host.create_queue_pair().read(1, 0, 1) == bytes(512)


def test_shadow_doorbells_with_a_mapped_page(serve: Serve, attach: Attach) -> None:
    host = attach(serve("memory:64M", "--doorbells", "mapped"), "auto")
    queue = host.create_queue_pair(64)
    verifier = Verifier(host.namespaces[1].blocks, 512)
    spec = LoadSpec(pattern="randrw", depth=16)
    stats = check(run_load(host, [queue], spec, seconds=0.5, verifier=verifier))
    assert stats.registers == 0


# One server for all examples: each works on what the one before it left.
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["write", "read", "zeroes", "trim", "compare", "flush"]),
        st.integers(0, 250),
        st.integers(1, 24),
        st.integers(0, 2**32),
    ),
    max_size=30,
)


class Model:
    """What the first 512 blocks should hold."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.blocks = bytearray(512 * 512)
        self.queue: QueuePair = host.create_queue_pair(4)

    def step(self, what: str, lba: int, count: int, seed: int) -> None:
        place = slice(lba * 512, (lba + count) * 512)
        if what == "write":
            data = seed.to_bytes(8, "little") * 64 * count
            self.queue.write(1, lba, data, offset=seed % 1024 * 4)
            self.blocks[place] = data
        elif what == "read":
            assert self.queue.read(1, lba, count, offset=seed % 1024 * 4) == self.blocks[place]
        elif what == "compare":
            assert self.queue.compare(1, lba, bytes(self.blocks[place]))
        elif what == "flush":
            self.queue.flush(1)
        else:
            if what == "trim":
                self.queue.dataset_management(1, [(lba, count)])
            else:
                self.queue.write_zeroes(1, lba, count, deallocate=bool(seed & 1))
            self.blocks[place] = bytes(count * 512)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_operations_agree_with_a_model(
    serve: Serve, attach: Attach, way: Doorbells, kind: str
) -> None:
    spec = "memory:16M" if kind == "memory" else "{folder}/disk.img"
    model = Model(attach(serve(spec, *SERVE[way], image=16 << 20), way))

    @settings(
        max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(OPERATIONS)
    def examples(operations: list[tuple[str, int, int, int]]) -> None:
        for operation in operations:
            model.step(*operation)

    examples()
    assert model.queue.read(1, 0, 512) == model.blocks
