"""Doorbells (NVMe Base 2.0, 3.1.3.24 and 5.8): trapped, shadowed and mapped, and full queues."""

import os
import random
import select
import time
from collections.abc import Iterator

import pytest
from dataplane_host import (
    FLUSH,
    MIB,
    PAGE,
    READ,
    Host,
    Queue,
    flush_all,
    sqe,
    wait_until,
)

from shadowbell.dataplane import IOThread
from shadowbell.dataplane.ledger import bucket_ns


@pytest.fixture(params=["trap", "shadow", "mapped"])
def way(request: pytest.FixtureRequest, iothreads: list[IOThread]) -> Iterator[Host]:
    """A host of each of the three ways, with a namespace."""
    host = Host(iothreads, mapped=request.param == "mapped", size=48 * MIB, max_queues=128)
    backend = host.attach_memory()
    if request.param == "shadow":
        host.use_shadow()
    yield host
    host.close()
    backend.close()


@pytest.mark.parametrize("entries", [2, 3, 17, 64, 4096])
def test_many_laps(way: Host, entries: int) -> None:
    """Indices and the phase wrap, in batches of any size."""
    queue = way.queue(1, entries)
    draw = random.Random(entries)
    for _ in range(6 if entries == 4096 else 30):
        flush_all(queue, entries, draw.randrange(1, entries))


@pytest.mark.parametrize("cq_entries", [2, 3, 8])
def test_completion_queues_that_are_full(way: Host, cq_entries: int) -> None:
    """Many more commands than completion entries; the host takes them slowly."""
    queue = way.queue(1, 64, cq_entries=cq_entries)
    for turn in range(20):
        queue.submit(*(sqe(FLUSH, cid=i) for i in range(63)))
        if turn % 5 == 0:
            time.sleep(0.003)  # long enough for the IOThread to fall asleep
        done = queue.drain(63)
        assert [c.cid for c in done] == list(range(63)), turn
    time.sleep(0.003)
    assert queue.peek() is None


def test_a_full_queue_posts_no_more_than_it_holds(way: Host) -> None:
    queue = way.queue(1, 64, cq_entries=4)
    queue.submit(*(sqe(FLUSH, cid=i) for i in range(10)))
    time.sleep(0.005)
    fourth = way.read(queue.cq + 48, 16)
    assert fourth == bytes(16)
    assert [c.cid for c in queue.drain(10)] == list(range(10))


@pytest.mark.parametrize("cq_entries", [2, 5, 64])
def test_submission_queues_that_share_a_completion_queue(way: Host, cq_entries: int) -> None:
    """None of them is forgotten, whichever finds the room first."""
    first = way.queue(1, 16, cq_entries=cq_entries)
    queues = [first] + [way.sharing(qid, first, 16) for qid in (2, 3, 4)]
    draw = random.Random(cq_entries)
    for _ in range(60):
        expected = {}
        for queue in draw.sample(queues, draw.randrange(1, 5)):
            count = draw.randrange(1, 16)
            expected[queue.qid] = count
            queue.submit(*(sqe(FLUSH, cid=i) for i in range(count)))
            if draw.random() < 0.2:
                time.sleep(0.002)
        seen: dict[int, list[int]] = {}
        for completion in first.drain(sum(expected.values())):
            seen.setdefault(completion.sqid, []).append(completion.cid)
        assert seen == {qid: list(range(count)) for qid, count in expected.items()}


def test_a_queue_that_slept_beside_a_full_completion_queue(way: Host) -> None:
    """An idle queue is let go of while its completion queue is full; its next command is heard."""
    first = way.queue(1, 64, cq_entries=4)
    second = way.sharing(2, first)
    for _ in range(10):
        first.submit(*(sqe(FLUSH, cid=i) for i in range(8)))
        time.sleep(0.004)
        for _ in range(8):
            first.wait()
        second.submit(sqe(FLUSH, cid=100))
        assert first.wait().cid == 100
        time.sleep(0.003)


def test_128_queues(way: Host) -> None:
    queues = [way.queue(qid, 8) for qid in range(1, 129)]
    for turn in range(3):
        for queue in queues:
            queue.submit(*(sqe(FLUSH, cid=turn * 3 + i) for i in range(3)))
        for queue in queues:
            assert [c.cid for c in queue.drain(3)] == [turn * 3 + i for i in range(3)]
        time.sleep(0.002)


# --- wrong doorbells ----------------------------------------------------------------------------


@pytest.mark.parametrize("slot", [4, 5, 1022, 1023])
def test_registers_of_queues_that_arent(host: Host, disk: Queue, slot: int) -> None:
    host.bell(slot, 1)
    (event,) = host.events()
    assert (event.kind, event.qid, event.cid) == ("invalid-doorbell-register", slot // 2, slot & 1)


@pytest.mark.parametrize("value", [64, 65, 0xFFFF, 0x10000, 0xFFFFFFFF])
@pytest.mark.parametrize("slot", [2, 3])
def test_values_beyond_the_queue(host: Host, disk: Queue, slot: int, value: int) -> None:
    host.bell(slot, value)
    (event,) = host.events()
    assert (event.kind, event.qid, event.cid) == ("invalid-doorbell-value", 1, slot & 1)
    assert disk.run(sqe(FLUSH, cid=3)).cid == 3


@pytest.mark.parametrize("mapped", [False, True])
def test_nonsense_in_shared_memory(iothreads: list[IOThread], mapped: bool) -> None:
    host = Host(iothreads, mapped=mapped)
    backend = host.attach_memory()
    if not mapped:
        host.use_shadow()
    queue, other = host.queue(1), host.queue(2)
    old, queue.tail = queue.tail, 0xFFFFFFFF
    queue.host.update(queue, 2, old, 0xFFFFFFFF)
    if not mapped:
        host.bell(2, 1)
    assert {event.qid for event in host.events("invalid-doorbell-value")} == {1}
    assert other.run(sqe(FLUSH, cid=4)).cid == 4
    host.close()
    backend.close()


# --- the admin queue, interrupts, the ledger ----------------------------------------------------


def test_admin_completions_wait_for_room(way: Host) -> None:
    admin = way.admin(16, 4)
    admin.submit(*(sqe(6, cid=i) for i in range(10)))
    seen: list[int] = []
    taken: list[int] = []

    def step() -> bool:
        command = way.engine.fetch_admin()
        if command is not None:
            seen.append(int.from_bytes(command[2:4], "little"))
            way.engine.complete_admin(seen[-1], 0)
        elif (completion := admin.take()) is not None:
            taken.append(completion.cid)
        return len(taken) == 10

    wait_until(step)
    assert seen == taken == list(range(10))


def readable(fd: int, seconds: float = 0.0) -> bool:
    return bool(select.select([fd], [], [], seconds)[0])


def test_interrupts(host: Host, disk: Queue) -> None:
    keep = os.eventfd(0, os.EFD_NONBLOCK)
    host.engine.set_vector(3, os.dup(keep))
    queue = host.queue(2, vector=3)
    queue.run(sqe(FLUSH))
    assert readable(keep, 5)
    os.eventfd_read(keep)
    queue.submit(*(sqe(FLUSH, cid=i) for i in range(50)))
    queue.drain(50)
    assert readable(keep, 5)
    assert host.ledger(2).interrupts < 51
    host.engine.set_vector(3, None)
    time.sleep(0.002)
    while readable(keep):
        os.eventfd_read(keep)
    queue.submit(sqe(FLUSH, cid=1))
    wait_until(lambda: queue.peek())
    time.sleep(0.002)
    assert not readable(keep)
    host.engine.set_vector(3, os.dup(keep))  # the entry wasn't seen: raised at once
    assert readable(keep)
    os.eventfd_read(keep)
    queue.take()
    wait_until(lambda: host.ledger(2).doorbells)
    host.engine.signal_vector(3)
    assert readable(keep)
    for vector in (-1, 130):
        with pytest.raises(ValueError, match="vector"):
            host.engine.set_vector(vector, None)
        host.engine.signal_vector(vector)
    os.close(keep)


def latency_bucket(ns: int) -> int:
    """queues.pxd's, in Python."""
    if ns < 4:
        return ns
    octave = ns.bit_length() - 1
    return (octave - 1) * 4 + (ns >> (octave - 2) & 3)


def test_latency_buckets() -> None:
    bounds = [bucket_ns(i) for i in range(252)]
    assert bounds == sorted(set(bounds))
    assert [latency_bucket(bound) for bound in bounds] == list(range(252))
    assert [latency_bucket(bound - 1) for bound in bounds[1:]] == list(range(251))
    assert latency_bucket((1 << 64) - 1) < 256


def test_the_ledger_counts(host: Host, disk: Queue) -> None:
    buffer = host.take(PAGE)
    for _ in range(10):
        disk.run(sqe(READ, prp1=buffer))
    ledger = host.ledger(1)
    assert ledger.ios == sum(count for _, count in ledger.latency) == 10
    assert 0 < ledger.percentile_ns(0.5) <= ledger.percentile_ns(0.99) < 5_000_000_000
    wait_until(lambda: host.ledger(1).doorbells == disk.bells)
    host.engine.reset()
    assert host.ledger(1).ios == 10
