"""Interrupts of completion queues: at once, held back, coalesced (Base 2.0, 5.27.1.6), masked."""

import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dataplane_host import FLUSH, READ, Host, Queue, running, sqe, wait_until

from shadowbell.block import open_backend

VECTOR = 3
FOREVER = 60_000_000  # microseconds: longer than any test


@pytest.fixture(params=[0, 32], ids=["sleeping", "polling"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with running(poll_max_us=request.param) as threads:
        made = Host(threads)
        made.attach_memory()
        try:
            yield made
        finally:
            made.close()


class Vector:
    """An interrupt vector of the host's; the engine has a descriptor of its own."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.unmask()

    def unmask(self) -> None:
        self.host.engine.set_vector(VECTOR, os.dup(self.fd))

    def mask(self) -> None:
        self.host.engine.set_vector(VECTOR, None)

    def raised(self, seconds: float = 5.0) -> int:
        """Wait for it; how often it was raised, 0 when it wasn't."""
        ready, _, _ = select.select([self.fd], [], [], seconds)
        return os.eventfd_read(self.fd) if ready else 0


@pytest.fixture
def vector(host: Host) -> Iterator[Vector]:
    made = Vector(host)
    yield made
    os.close(made.fd)


@pytest.fixture
def queue(host: Host, vector: Vector) -> Queue:
    return host.queue(1, vector=VECTOR)


def reads(count: int) -> list[bytes]:
    return [sqe(FLUSH, cid=cid) for cid in range(count)]


def posted(queue: Queue, count: int) -> None:
    """Wait until so many entries are there, and take none."""
    last = queue.cq + 16 * ((queue.head + count - 1) % queue.cq_entries)
    wait_until(lambda: queue.host.read(last + 14, 1)[0] & 1 == queue.phase)


def test_one_command_at_a_time_is_signalled_at_once(queue: Queue, vector: Vector) -> None:
    for _ in range(50):
        queue.submit(sqe(FLUSH))
        assert vector.raised() == 1
        assert queue.take() is not None
    assert queue.host.ledger(1).interrupts == 50
    assert queue.host.ledger(1).interrupts_suppressed == 0


def test_a_host_that_never_stores_its_head_is_signalled_all_the_same(
    queue: Queue, vector: Vector
) -> None:
    for _ in range(30):
        queue.submit(sqe(FLUSH))
        assert vector.raised() >= 1
        assert queue.take(ring=False) is not None


def test_a_batch_is_signalled_once(queue: Queue, vector: Vector) -> None:
    """Nothing is taken in between, so that all that follows the signal is held back."""
    queue.submit(*reads(60))
    posted(queue, 60)
    assert 1 <= vector.raised() + vector.raised(0.1) <= 3


def test_no_interrupts_without_a_vector(host: Host, vector: Vector) -> None:
    queue = host.queue(2)
    queue.run(sqe(FLUSH))
    assert vector.raised(0.02) == 0
    assert host.ledger(2).interrupts == host.ledger(2).interrupts_suppressed == 0


class TestCoalescing:
    """Each fact of the feature, with times that make it sure which of its two limits it was."""

    def test_the_threshold(self, host: Host, queue: Queue, vector: Vector) -> None:
        host.engine.set_coalescing(4, FOREVER, ())
        for turn in range(3):
            for command in reads(3):
                queue.submit(command)
                posted(queue, 1)
                queue.take()
            assert vector.raised(0.02) == 0
            queue.submit(sqe(FLUSH))
            assert vector.raised() == 1
            assert queue.take() is not None
            assert host.ledger(1).interrupts == turn + 1
            assert host.ledger(1).interrupts_suppressed == 3 * (turn + 1)

    def test_the_time(self, host: Host, queue: Queue, vector: Vector) -> None:
        host.engine.set_coalescing(100, 20_000, ())
        for _ in range(3):
            before = time.monotonic()
            queue.submit(*reads(2))
            assert vector.raised() == 1
            assert time.monotonic() - before > 0.0199
            queue.drain(2)

    def test_what_the_host_took_by_itself_needs_no_interrupt(
        self, host: Host, queue: Queue, vector: Vector
    ) -> None:
        host.engine.set_coalescing(100, 500_000, ())
        queue.submit(*reads(2))
        queue.drain(2)
        wait_until(lambda: host.ledger(1).interrupts_suppressed > 0)
        assert vector.raised(0) == 0
        assert host.ledger(1).interrupts == 0

    @pytest.mark.parametrize(("entries", "time"), [(1, FOREVER), (100, 0)])
    def test_one_limit_alone_coalesces_nothing(
        self, host: Host, queue: Queue, vector: Vector, entries: int, time: int
    ) -> None:
        host.engine.set_coalescing(entries, time, ())
        queue.submit(sqe(FLUSH))
        assert vector.raised() == 1

    def test_errors_do_not_wait(self, host: Host, queue: Queue, vector: Vector) -> None:
        host.engine.set_coalescing(100, FOREVER, ())
        queue.submit(sqe(0x7F))
        assert vector.raised() == 1

    def test_a_full_queue_does_not_wait(self, host: Host, vector: Vector) -> None:
        host.engine.set_coalescing(100, FOREVER, ())
        queue = host.queue(1, 16, cq_entries=4, vector=VECTOR)
        queue.submit(*reads(5))
        assert vector.raised() == 1
        assert len(queue.drain(5)) == 5

    def test_vectors_can_be_exempt(self, host: Host, queue: Queue, vector: Vector) -> None:
        host.engine.set_coalescing(100, FOREVER, {VECTOR})
        queue.submit(sqe(FLUSH))
        assert vector.raised() == 1
        queue.take()
        later = host.queue(2, vector=VECTOR)
        later.submit(sqe(FLUSH))
        assert vector.raised() == 1

    def test_later_queues_are_coalesced_too(self, host: Host, vector: Vector) -> None:
        host.engine.set_coalescing(2, FOREVER, ())
        queue = host.queue(2, vector=VECTOR)
        queue.submit(sqe(FLUSH))
        posted(queue, 1)
        assert vector.raised(0.02) == 0
        queue.submit(sqe(FLUSH))
        assert vector.raised() == 1

    def test_turning_it_off_signals_what_waits(
        self, host: Host, queue: Queue, vector: Vector
    ) -> None:
        host.engine.set_coalescing(100, FOREVER, ())
        queue.submit(sqe(FLUSH))
        posted(queue, 1)
        host.engine.set_coalescing(1, 0, ())
        assert vector.raised() == 1

    def test_masked_meanwhile(self, host: Host, queue: Queue, vector: Vector) -> None:
        """What waits is raised after unmasking, whatever happened to it before."""
        host.engine.set_coalescing(100, FOREVER, ())
        queue.submit(sqe(FLUSH))
        posted(queue, 1)
        vector.mask()
        vector.raised(0)
        queue.submit(sqe(FLUSH))
        posted(queue, 2)
        assert vector.raised(0.02) == 0
        vector.unmask()
        assert vector.raised() == 1

    def test_queues_and_controllers_go_while_something_waits(
        self, host: Host, queue: Queue, vector: Vector
    ) -> None:
        host.engine.set_coalescing(100, FOREVER, ())
        queue.submit(sqe(FLUSH))
        posted(queue, 1)
        host.engine.delete_sq(1)
        host.engine.delete_cq(1)
        other = host.queue(1, vector=VECTOR)
        other.submit(sqe(FLUSH))
        posted(other, 1)
        host.engine.reset()
        vector.raised(0)
        assert vector.raised(0.02) == 0


def test_masked_and_unmasked(queue: Queue, vector: Vector) -> None:
    """Completions of the time without an eventfd are raised with the next, once."""
    vector.mask()
    queue.submit(*reads(3))
    posted(queue, 3)
    assert vector.raised(0.02) == 0
    vector.unmask()
    assert vector.raised() == 1
    queue.drain(3)
    vector.mask()
    vector.unmask()
    assert vector.raised(0.02) == 0
    queue.submit(sqe(FLUSH))
    assert vector.raised() == 1


def test_interrupts_of_a_file(tmp_path: Path) -> None:
    """Completions that come one by one: the host sleeps, takes all, stores its head, sleeps."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    with running() as threads:
        host = Host(threads)
        host.attach(open_backend("file", path=str(path), size=None, lba=512, read_only=False))
        vector = Vector(host)
        queue = host.queue(1, vector=VECTOR)
        data = host.take(4096)
        left = 0
        for turn in range(300):
            while left < 20:
                queue.submit(sqe(READ, cid=left, lba=8 * (turn % 9), blocks=8, prp1=data))
                left += 1
            assert vector.raised() >= 1
            while queue.take() is not None:
                left -= 1
        while left:
            assert vector.raised() >= 1
            while queue.take() is not None:
                left -= 1
        host.close()
        os.close(vector.fd)
