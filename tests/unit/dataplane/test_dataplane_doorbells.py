"""Doorbells (NVMe Base 2.0, 3.1.3.24 and 5.8): trapped, shadowed and mapped, and full queues."""

import os
import random
import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dataplane_host import FLUSH, MIB, PAGE, READ, Host, Queue, running, sqe, wait_until

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


def flush_all(queue: Queue, count: int, batch: int) -> None:
    """Submit in batches and take the completions in between; every command comes back once."""
    left, cid = count, 0
    while left:
        n = min(batch, left)
        queue.submit(*(sqe(FLUSH, cid=(cid + i) & 0xFFFF) for i in range(n)))
        done = queue.drain(n)
        assert [c.cid for c in done] == [(cid + i) & 0xFFFF for i in range(n)]
        assert not any(c.status for c in done)
        assert done[-1].sq_head == queue.tail
        left, cid = left - n, cid + n


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


# --- shadows --------------------------------------------------------------------------------------


@pytest.fixture
def shadowed(host: Host) -> Iterator[Host]:
    backend = host.attach_memory()
    host.use_shadow()
    yield host
    host.engine.close()
    backend.close()


def eventidx(host: Host, slot: int) -> int:
    assert host.shadow is not None
    return host.word(host.shadow[1] + 4 * slot)


def test_asleep_the_queue_is_armed(shadowed: Host) -> None:
    queue = shadowed.queue(1)
    for i in range(5):
        assert queue.run(sqe(FLUSH, cid=i)).cid == i
        wait_until(lambda: eventidx(shadowed, 2) == queue.tail)
        time.sleep(0.002)
    assert queue.bells >= 3  # the first commands may come before the thread first sleeps
    wait_until(lambda: shadowed.ledger(1).doorbells == queue.bells)


def test_busy_the_host_rings_rarely(shadowed: Host) -> None:
    queue = shadowed.queue(1, 256)
    flush_all(queue, 20000, 100)
    assert queue.bells < 20000 * 0.05
    wait_until(lambda: shadowed.ledger(1).doorbells == queue.bells)
    ledger = shadowed.ledger(1)
    assert ledger.shadow_finds > 0
    assert ledger.arms >= ledger.arms_lost


def test_queues_bring_their_values(host: Host) -> None:
    """Queues from before Doorbell Buffer Config go on where they are."""
    backend = host.attach_memory()
    queue = host.queue(1)
    flush_all(queue, 5, 5)
    wait_until(lambda: host.ledger(1).doorbells == queue.bells)
    shadow, _ = host.use_shadow()
    assert (host.word(shadow + 8), host.word(shadow + 12)) == (5, 5)
    flush_all(queue, 200, 7)
    host.engine.close()
    backend.close()


def test_stale_slots_at_creation(shadowed: Host) -> None:
    assert shadowed.shadow is not None
    for slot in (2, 3):
        shadowed.store(shadowed.shadow[0] + 4 * slot, 33)
        shadowed.store(shadowed.shadow[1] + 4 * slot, 33)
    queue = shadowed.queue(1)
    time.sleep(0.002)
    assert queue.peek() is None
    assert shadowed.engine.take_events() == []
    flush_all(queue, 100, 20)


def test_a_host_that_never_shadows_a_queue(shadowed: Host) -> None:
    """Linux' and SPDK's admin queue: the register's value counts."""
    admin = shadowed.admin(8, 8)
    admin.stores_shadow = False
    queue = shadowed.queue(1)
    for i in range(100):
        admin.submit(sqe(6, cid=i), sqe(6, cid=1000 + i))
        for cid in (i, 1000 + i):
            fetched: list[bytes] = []

            def fetch(into: list[bytes] = fetched) -> bool:
                command = shadowed.engine.fetch_admin()
                into.extend([command] if command else [])
                return bool(into)

            wait_until(fetch, what=f"admin command {cid} is lost")
            assert int.from_bytes(fetched[0][2:4], "little") == cid
            shadowed.engine.complete_admin(cid, 0, i)
            assert admin.wait() == (
                cid,
                0,
                (admin.tail if cid >= 1000 else admin.tail - 1) % 8,
                0,
                i,
            )
        assert queue.run(sqe(FLUSH, cid=i)).cid == i


def test_a_host_that_shadows_the_admin_queue(shadowed: Host) -> None:
    admin = shadowed.admin(4, 4)
    for i in range(50):
        admin.submit(sqe(6, cid=i))
        assert shadowed.notified()
        shadowed.engine.clear_notify()
        wait_until(lambda: shadowed.engine.fetch_admin() is not None)
        assert shadowed.engine.fetch_admin() is None
        shadowed.engine.complete_admin(i, 0)
        assert admin.wait().cid == i


def test_old_register_writes_dont_move_a_shadow_back(shadowed: Host) -> None:
    queue = shadowed.queue(1)
    flush_all(queue, 40, 10)
    for stale in (1, 2, 10, 39):
        shadowed.bell(2, stale)
        shadowed.bell(3, stale)
    time.sleep(0.005)
    assert queue.peek() is None
    assert shadowed.ledger(1).commands == {"flush": 40}
    flush_all(queue, 500, 13)


def test_shadow_pages_away_and_back(shadowed: Host) -> None:
    queue = shadowed.queue(1)
    flush_all(queue, 30, 10)
    for turn in range(20):
        shadowed.engine.dma_unmap(0, shadowed.size)
        queue.submit(*(sqe(FLUSH, cid=i) for i in range(9)))
        shadowed.engine.dma_map(0, shadowed.size, shadowed.fd, 0, 3)
        assert [c.cid for c in queue.drain(9)] == list(range(9)), turn
    with pytest.raises(Exception, match="mapped"):
        shadowed.engine.set_shadow(1 << 50, 1 << 50)


def test_an_ioeventfd_outlives_an_absence_of_the_shadow(shadowed: Host) -> None:
    """The client's hypervisor still has it, and asks no second time."""
    queue = shadowed.queue(1)
    ((offset, size, fd),) = shadowed.engine.region_io_fds()
    assert (offset, size) == (0x1008, 4)
    fd = os.dup(fd)
    shadowed.engine.dma_unmap(0, shadowed.size)
    assert shadowed.engine.region_io_fds() == []
    shadowed.engine.dma_map(0, shadowed.size, shadowed.fd, 0, 3)
    assert shadowed.shadow is not None
    for i in range(3):
        time.sleep(0.004)
        queue.put(sqe(FLUSH, cid=i))
        shadowed.store(shadowed.shadow[0] + 8, queue.tail)
        os.eventfd_write(fd, 1)  # in place of the register
        assert queue.wait().cid == i
    os.close(fd)
    shadowed.engine.reset()
    assert shadowed.engine.region_io_fds() == []


def test_reset_ends_shadowing(shadowed: Host) -> None:
    """The next boot's memory is not ours to write."""
    assert shadowed.shadow is not None
    flush_all(shadowed.queue(1), 10, 3)
    shadowed.engine.reset()
    shadow = shadowed.shadow
    shadowed.shadow = None
    for page in shadow:
        shadowed.write(page, b"\x5a" * PAGE)
    queue = shadowed.queue(1)
    flush_all(queue, 200, 20)
    time.sleep(0.005)
    flush_all(queue, 200, 20)
    for page in shadow:
        assert shadowed.read(page, PAGE) == b"\x5a" * PAGE


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


def test_without_polling() -> None:
    """poll_max_us=0: every command finds the thread asleep."""
    for shadow in (False, True):
        with running(2, poll_max_us=0) as threads:
            host = Host(threads)
            backend = host.attach_memory()
            if shadow:
                host.use_shadow()
            queues = [host.queue(1), host.queue(2)]
            for _ in range(200):
                for queue in queues:
                    assert queue.run(sqe(FLUSH)).status == 0
            host.close()
            backend.close()


def asleep(thread: threading.Thread) -> bool:
    stat = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "S"


@pytest.mark.parametrize("shadow", [False, True])
def test_polling_always(shadow: bool) -> None:
    """poll_max_us="busy": no sleep between commands, no doorbell armed, until no queue is left."""
    before = set(threading.enumerate())
    with running(poll_max_us="busy") as threads:
        (thread,) = set(threading.enumerate()) - before
        host = Host(threads)
        wait_until(lambda: asleep(thread))
        backend = host.attach_memory()
        if shadow:
            host.use_shadow()
        queue = host.queue(1)
        for _ in range(20):
            assert queue.run(sqe(FLUSH)).status == 0
            time.sleep(0.002)
            assert not asleep(thread)
        assert host.ledger(1).arms == 0
        host.engine.delete_sq(1)
        host.engine.delete_cq(1)
        wait_until(lambda: asleep(thread))
        assert host.queue(1).run(sqe(FLUSH)).status == 0
        host.close()
        wait_until(lambda: asleep(thread))
        backend.close()
