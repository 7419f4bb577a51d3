"""A queue changes its IOThread with commands under way, asleep, full, or told of by an eventfd."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from dataplane_host import MIB, PAGE, READ, WRITE, Host, Queue, running, sqe, wait_until

from shadowbell.block import open_backend
from shadowbell.dataplane import IOThread

THREADS = 3


@pytest.fixture
def threads() -> Iterator[list[IOThread]]:
    with running(THREADS) as threads:
        yield threads


@pytest.fixture
def moving(threads: list[IOThread]) -> Iterator[Host]:
    host = Host(threads, size=48 * MIB)
    yield host
    host.close()


def place(host: Host, qid: int) -> int | None:
    return host.ledger(qid).iothread


def test_a_move_that_would_wait_is_called_off(moving: Host, tmp_path: Path) -> None:
    """Large reads of a file are under way: without patience the queue stays, with it, it goes."""
    path = tmp_path / "disk"
    content = random.Random(1).randbytes(MIB // 2) * 2
    path.write_bytes(content * 16)
    backend = open_backend("file", path=str(path), size=None, lba=512, read_only=True)
    moving.attach(backend)
    shadow, _ = moving.use_shadow()
    queue = moving.queue(1, 64)
    offered = {offset: fd for offset, _, fd in moving.engine.region_io_fds()}
    ring = offered[0x1000 + 8 * queue.qid]
    buffer = moving.take(MIB // 2)
    prp1, prp2 = moving.prps(buffer, MIB // 2)
    outcomes: set[bool] = set()
    chance = random.Random(2)

    def try_both() -> bool:
        for patience in (0, 1000):
            lbas = [chance.randrange(31) * 1024 for _ in range(63)]
            for cid, lba in enumerate(lbas):
                queue.put(sqe(READ, cid=cid, prp1=prp1, prp2=prp2, lba=lba, blocks=1024))
            moving.store(shadow + 8 * queue.qid, queue.tail)
            os.eventfd_write(ring, 1)
            wait_until(lambda: queue.peek() is not None)
            before = place(moving, 1)
            target = (before or 0) + 1
            moved = moving.engine.move_queue(1, target % THREADS, patience_ms=patience)
            outcomes.add(moved)
            assert place(moving, 1) == (target % THREADS if moved else before)
            done = queue.drain(63)
            assert sorted(completion.cid for completion in done) == list(range(63))
            assert not any(completion.status for completion in done)
            assert moving.read(buffer, MIB // 2) in content
        return outcomes == {False, True}

    wait_until(try_both, 30)
    moving.engine.close()
    backend.close()


def test_a_sleeping_queue_is_rung_at_its_new_thread(moving: Host) -> None:
    backend = moving.attach_memory()
    queues = [moving.queue(qid) for qid in (1, 2)]
    buffer = moving.take(PAGE)
    for shadowed in (False, True):
        if shadowed:
            moving.use_shadow()
        for turn in range(12):
            for queue in queues:
                arms = moving.ledger(queue.qid).arms
                assert queue.run(sqe(READ, cid=turn, prp1=buffer)).cid == turn
                if shadowed:
                    wait_until(lambda q=queue, a=arms: moving.ledger(q.qid).arms > a)  # type: ignore[misc]
                assert moving.engine.move_queue(queue.qid, turn % THREADS)
                assert queue.run(sqe(READ, cid=turn + 100, prp1=buffer)).cid == turn + 100
    moving.engine.close()
    backend.close()


def test_a_full_completion_queue_moves(moving: Host) -> None:
    """Commands wait for room; the host makes it while, and after, the queue moves."""
    backend = moving.attach_memory()
    queue = moving.queue(1, 64, cq_entries=4)
    buffer = moving.take(PAGE)
    queue.submit(*(sqe(WRITE, cid=cid, lba=cid, prp1=buffer) for cid in range(60)))
    for cid in range(60):
        assert moving.engine.move_queue(1, cid % THREADS)
        assert queue.wait().cid == cid
    moving.engine.close()
    backend.close()


def test_queues_begin_where_they_are_placed(threads: list[IOThread]) -> None:
    host = Host(threads, max_queues=4, placement=[2, 0, 0, 1])
    backend = host.attach_memory()
    queues: list[Queue] = [host.queue(qid) for qid in (1, 2, 3, 4)]
    assert [place(host, qid) for qid in (1, 2, 3, 4)] == [2, 0, 0, 1]
    buffer = host.take(PAGE)
    for queue in queues:
        assert queue.run(sqe(READ, prp1=buffer)).status == 0
    assert [(cqid, thread) for cqid, thread, _ in host.engine.queue_loads()] == [
        (1, 2),
        (2, 0),
        (3, 0),
        (4, 1),
    ]
    assert all(work for _, _, work in host.engine.queue_loads())
    host.close()
    backend.close()
    with pytest.raises(ValueError, match="no IOThread 3"):
        Host(threads, max_queues=2, placement=[0, 3])
