"""Doorbells in the shadow buffer (NVMe Base 2.0, 5.8): who stores what, and which value counts."""

import os
import time
from collections.abc import Iterator

import pytest
from dataplane_host import FLUSH, PAGE, Host, flush_all, sqe, wait_until


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
