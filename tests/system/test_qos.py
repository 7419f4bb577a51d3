"""Limits of a namespace: kept exactly, shared fairly, and in nobody else's way."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import pytest

from serving import SOCKET, Attach, Serve
from shadowbell.bench.process import Disturbance
from shadowbell.cli.control import ask
from shadowbell.driver import Host, Load, LoadSpec, LoadStats, QueuePair, Verifier
from shadowbell.guest import Served
from shadowbell.limits import Limits
from shadowbell.manage.control import AddNamespace, MoveQueue, Qos, RemoveNamespace
from shadowbell.nvme import IoOpcode, Status, SubmissionEntry

SECONDS = 2.0
NEVER = 1  # commands a second: the second one of a test doesn't come
TRIES = 4
DISTURBED = 0.05  # of a processor


def limit(served: Served, nsid: int, **limits: float) -> None:
    ask(str(served.socket(SOCKET)), Qos(nsid, Limits(**limits)))


def loads(
    host: Host, queues: list[QueuePair], specs: list[LoadSpec], seconds: float = SECONDS
) -> list[LoadStats]:
    """One load a queue, all at the same time."""
    made = [Load(host, [queue], spec) for queue, spec in zip(queues, specs, strict=True)]
    results: dict[int, LoadStats] = {}

    def run(number: int) -> None:
        results[number] = made[number].run(seconds=seconds)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(made))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[number] for number in range(len(made))]


def rate(results: list[LoadStats]) -> float:
    """Commands a second of all of them."""
    assert all(stats.clean for stats in results)
    return sum(stats.ios for stats in results) / max(stats.seconds for stats in results)


def check_limit(
    served: Served, limit: float, measure: Callable[[], float], rel: float = 0.05
) -> None:
    """Nobody gets more. Who gets less tries again, if others had the processors meanwhile."""
    for _ in range(TRIES):
        disturbance = Disturbance([served.pid])
        found = measure()
        assert found <= limit * (1 + rel)
        if found >= limit * (1 - rel):
            return
        assert disturbance.others() > DISTURBED, f"{found:.1f} a second of {limit:g}"
    pytest.fail(f"{found:.1f} a second of {limit:g} in the last of {TRIES} tries")


def read(nsid: int, host: Host) -> SubmissionEntry:
    return SubmissionEntry(opcode=IoOpcode.READ, nsid=nsid, prp1=host.arena.iova)


@pytest.mark.parametrize("iothreads", [1, 2])
@pytest.mark.parametrize("iops", [300, 10_000])
def test_commands_a_second(serve: Serve, attach: Attach, iops: int, iothreads: int) -> None:
    served = serve(f"memory:8M,iops={iops}", "--iothreads", str(iothreads))
    host = attach(served)
    queues = [host.create_queue_pair(64) for _ in range(2)]
    check_limit(
        served, iops, lambda: rate(loads(host, queues, [LoadSpec(pattern="randrw", depth=16)] * 2))
    )


@pytest.mark.parametrize("block_size", [4096, 65536])
def test_bytes_a_second(serve: Serve, attach: Attach, block_size: int) -> None:
    served = serve("{folder}/disk.img,bps=32M", image=16 << 20)
    host = attach(served)
    queues, specs = [host.create_queue_pair(64)], [LoadSpec(block_size=block_size, depth=8)]
    check_limit(served, 32 << 20, lambda: rate(loads(host, queues, specs)) * block_size)


def test_the_tighter_limit_counts(serve: Serve, attach: Attach) -> None:
    served = serve("memory:8M,iops=2000,bps=4M")
    host = attach(served)
    queue = host.create_queue_pair(64)

    def measure(block_size: int) -> float:
        return rate(loads(host, [queue], [LoadSpec(block_size=block_size, depth=8)], 1))

    check_limit(served, 2000, lambda: measure(512), rel=0.1)
    check_limit(served, 256, lambda: measure(16384), rel=0.1)


def test_limits_change_under_load(serve: Serve, attach: Attach) -> None:
    served = serve(f"memory:8M,iops={NEVER}")
    host = attach(served)
    load = Load(host, [host.create_queue_pair(64)], LoadSpec(depth=32))
    done: list[LoadStats] = []
    thread = threading.Thread(target=lambda: done.append(load.run(seconds=60, stall=60)))
    thread.start()
    before = served.ledger(SOCKET).commands

    def measure() -> float:
        start, first = time.monotonic(), served.ledger(SOCKET).commands
        time.sleep(1)
        last = served.ledger(SOCKET).commands
        return (last - first) / (time.monotonic() - start)

    try:
        for iops in (2000, 8000):
            limit(served, 1, iops=iops)
            time.sleep(0.2)  # what was saved up is spent
            check_limit(served, iops, measure, rel=0.1)
        limit(served, 1)
        unlimited = measure()
        limit(served, 1, iops=NEVER)
    finally:
        load.stop()
        limit(served, 1)
        thread.join(30)
    assert before <= 40
    assert unlimited > 12_000
    assert done[0].clean


def test_what_was_left_unused_may_be_made_up_for(serve: Serve, attach: Attach) -> None:
    served = serve("memory:8M,iops=100,burst=30")
    host = attach(served)
    queue = host.create_queue_pair(64)
    time.sleep(0.5)
    for _ in range(40):  # of the 50 that were saved up
        queue.submit(read(1, host), ring=False)
    queue.submit(read(1, host))
    start = time.monotonic()
    found = 0
    while found < 41:
        found += len(queue.poll())
    assert time.monotonic() - start < 0.3  # 0.41 s without


def test_another_namespace_of_the_queue_goes_on(serve: Serve, attach: Attach) -> None:
    served = serve(f"memory:8M,iops={NEVER}", "memory:8M", f"memory:8M,iops={NEVER}")
    host = attach(served)
    queue = host.create_queue_pair(256)
    for _ in range(100):
        queue.submit(read(1, host), ring=False)
        queue.submit(read(3, host), ring=False)
    queue.submit(read(1, host))
    for number in range(300):
        queue.write(2, number, bytes([number & 0xFF]) * 512)
        assert queue.read(2, number, 1) == bytes([number & 0xFF]) * 512
    queue.flush(1)  # moves no data, and waits for none that wasn't completed
    host.create_queue_pair(8).read(2, 0, 1)


def test_more_is_held_than_commands_can_be_under_way(serve: Serve, attach: Attach) -> None:
    """Held commands take none of what a thread has for those that run."""
    served = serve(f"memory:8M,iops={NEVER}", "memory:8M")
    host = attach(served)
    queues = [host.create_queue_pair(1024) for _ in range(3)]
    for queue in queues:
        for _ in range(1000):
            queue.submit(read(1, host), ring=False)
        queue.ring.ring()
    other = host.create_queue_pair(64)
    for number in range(100):
        other.write(2, number, bytes([number]) * 512)
        assert other.read(2, number, 1) == bytes([number]) * 512
    limit(served, 1)
    for queue in queues:
        found = 0
        end = time.monotonic() + 20
        while found < 1000:
            found += len(queue.poll())
            assert time.monotonic() < end


def test_queues_have_equal_shares(serve: Serve, attach: Attach) -> None:
    """However much each has waiting, and whichever thread it is on."""
    served = serve("memory:8M,iops=3000", "--iothreads", "2")
    host = attach(served)
    depths = [1, 4, 60]
    queues = [host.create_queue_pair(64) for _ in depths]
    specs = [LoadSpec(depth=depth) for depth in depths]
    results: list[LoadStats] = []

    def measure() -> float:
        results[:] = loads(host, queues, specs)
        return rate(results)

    check_limit(served, 3000, measure)
    for stats in results[1:]:
        assert stats.ios >= 0.25 * 3000 * SECONDS
    assert results[0].ios >= 0.15 * 3000 * SECONDS  # it is alone with its way there and back


def test_data_is_right_when_it_comes_late(serve: Serve, attach: Attach) -> None:
    host = attach(serve("{folder}/disk.img,iops=5000,bps=20M", image=8 << 20))
    queue = host.create_queue_pair(64)
    verifier = Verifier(host.namespaces[1].blocks, 512)
    spec = LoadSpec(pattern="randrw", depth=32)
    assert Load(host, [queue], spec, verifier=verifier).run(ios=5000).clean


def test_pauses_give_nothing_away(serve: Serve, attach: Attach) -> None:
    """A host that makes and deletes queues all the time gets no more than its limit."""
    served = serve("memory:8M,iops=1000")
    host = attach(served)
    queue = host.create_queue_pair(256)

    def measure() -> float:
        done: list[LoadStats] = []
        thread = threading.Thread(
            target=lambda: done.extend(loads(host, [queue], [LoadSpec(depth=200)]))
        )
        thread.start()
        while thread.is_alive():
            host.delete_queue_pair(host.create_queue_pair(4))
        return rate(done)

    check_limit(served, 1000, measure)


def test_what_is_held_moves_with_its_queue(serve: Serve, attach: Attach) -> None:
    served = serve("memory:8M,iops=2000", "--iothreads", "3")
    host = attach(served)
    queues = [host.create_queue_pair(64) for _ in range(3)]
    path = str(served.socket(SOCKET))
    places = itertools.cycle(itertools.product((1, 2, 3), (0, 1, 2)))

    def measure() -> float:
        results: list[LoadStats] = []
        thread = threading.Thread(
            target=lambda: results.extend(loads(host, queues, [LoadSpec(depth=32)] * 3))
        )
        thread.start()
        while thread.is_alive():
            assert ask(path, MoveQueue(*next(places)))
        return rate(results)

    check_limit(served, 2000, measure)
    limit(served, 1, iops=NEVER)
    fill(queues[0], host)
    for iothread in (0, 1, 2):
        assert ask(path, MoveQueue(queues[0].completions.qid, iothread))
    limit(served, 1)
    end = time.monotonic() + 10
    found = 0
    while found < 20:
        found += len(queues[0].poll())
        assert time.monotonic() < end


def fill(queue: QueuePair, host: Host, count: int = 20) -> None:
    for _ in range(count):
        queue.submit(read(1, host), ring=False)
    queue.ring.ring()


def test_queues_end_with_what_they_hold(serve: Serve, attach: Attach) -> None:
    served = serve(f"memory:8M,iops={NEVER}", "memory:8M", "--iothreads", "2")
    host = attach(served)
    for _ in range(5):
        kept = host.create_queue_pair(32)
        shared = host.create_queue_pair(32, share=kept.completions)
        fill(shared, host)
        host.admin.delete_sq(shared.qid)
        for number in range(100):  # its completion slots are free again
            kept.write(2, number, bytes([number]) * 512)
        fill(kept, host)
        host.reset()
    host.create_queue_pair(4).read(2, 0, 1)


def test_a_namespace_ends_with_what_it_holds(serve: Serve, attach: Attach) -> None:
    served = serve(f"memory:8M,iops={NEVER}", "memory:8M", "--iothreads", "2")
    host = attach(served)
    queues = [host.create_queue_pair(64) for _ in range(2)]
    for queue in queues:
        fill(queue, host, 50)
    path = str(served.socket(SOCKET))
    ask(path, RemoveNamespace(1))
    ask(path, AddNamespace("memory:8M", 1))
    for queue in queues:
        found = []
        end = time.monotonic() + 10
        while len(found) < 50:
            found += queue.poll()
            assert time.monotonic() < end
        late = [each for each in found if each.status]
        assert len(late) >= 48
        assert {(each.status, each.dnr) for each in late} == {
            (Status.INVALID_FIELD_IN_COMMAND, True)
        }
        queue.read(1, 0, 1)  # of the new one, which has no limits


def test_nobody_waits_forever_behind_a_full_completion_queue(serve: Serve, attach: Attach) -> None:
    """Two submission queues share a small completion queue, and hold all of its slots."""
    served = serve("memory:8M,iops=2000", "memory:8M")
    host = attach(served)
    first = host.create_queue_pair(8)
    second = host.create_queue_pair(64, share=first.completions)
    for queue, nsid in itertools.product((first, second), (1, 2)):
        for _ in range(3):
            queue.submit(read(nsid, host))
    end = time.monotonic() + 10
    found = 0
    while found < 12:
        found += len(first.poll()) + len(second.poll())
        assert time.monotonic() < end
