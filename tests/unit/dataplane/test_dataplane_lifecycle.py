"""Engines and IOThreads come and go, and leave nothing behind."""

import ctypes
import fcntl
import gc
import os
import platform
import random
import socket
import threading
from typing import ClassVar

import pytest
from dataplane_host import MIB, PAGE, READ, WRITE, Host, Queue, running, sqe

from shadowbell.block import open_backend
from shadowbell.dataplane import Engine, IOThread, live_objects

SCHED_GETATTR = 315 if platform.machine() == "x86_64" else 275  # the system call's number


def alive() -> dict[str, int]:
    gc.collect()
    return {kind: count for kind, count in live_objects().items() if count}


def test_nothing_is_left() -> None:

    def open_things() -> tuple[int, int]:
        with open("/proc/self/maps") as maps:
            return len(os.listdir("/proc/self/fd")), sum(1 for _ in maps)

    def use() -> None:
        with running(2) as threads:
            host = Host(threads)
            backend = host.attach_memory()
            host.admin()
            queue = host.queue(1, vector=1)
            host.engine.set_vector(1, os.eventfd(0))
            host.use_shadow()
            assert queue.run(sqe(READ, prp1=host.take(PAGE))).status == 0
            host.close()
            backend.close()

    use()
    before = alive()
    fds, maps = open_things()
    for _ in range(4):
        use()
    assert alive() == before
    assert open_things()[0] == fds
    assert open_things()[1] < maps + 8  # the allocator's and thread stacks aside


def test_closing_twice(host: Host) -> None:
    host.queue(1)
    host.engine.close()
    host.engine.close()


def test_the_doorbell_page_cant_be_shrunk_by_its_client(host: Host) -> None:
    for length in (0, PAGE, 3 * PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(host.engine.doorbell_fd, length)
    with pytest.raises(PermissionError):
        fcntl.fcntl(host.engine.doorbell_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_queues_that_cant_be(host: Host) -> None:
    engine = host.engine
    queue = host.queue(1)
    for qid in (-1, 17, 1 << 20):
        with pytest.raises(ValueError, match="queue"):
            engine.create_cq(qid, queue.cq, 8, None)
        with pytest.raises(ValueError, match="queue"):
            engine.create_sq(qid, queue.sq, 8, 1)
        with pytest.raises(ValueError, match="queue"):
            engine.create_sq(2, queue.sq, 8, qid)
        with pytest.raises(ValueError, match="queue"):
            engine.delete_sq(qid)
        with pytest.raises(ValueError, match="queue"):
            engine.delete_cq(qid)
    for entries in (0, 1, 4097):
        with pytest.raises(ValueError, match="queue"):
            engine.create_cq(2, queue.cq, entries, None)
        with pytest.raises(ValueError, match="queue"):
            engine.create_sq(2, queue.sq, entries, 1)
    with pytest.raises(ValueError, match="exists"):
        engine.create_cq(1, queue.cq, 8, None)
    with pytest.raises(ValueError, match="exists"):
        engine.create_sq(1, queue.sq, 8, 1)
    with pytest.raises(ValueError, match="uses"):
        engine.delete_cq(1)
    engine.delete_sq(1)
    engine.delete_cq(1)


def test_a_deleted_queue_comes_back_empty(host: Host, disk: Queue) -> None:
    buffer = host.take(PAGE)
    for _ in range(3):
        assert disk.run(sqe(READ, prp1=buffer)).status == 0
    host.engine.delete_sq(1)
    host.engine.delete_cq(1)
    again = host.queue(1, 8)
    assert again.run(sqe(READ, cid=5, prp1=buffer)) == (5, 0, 1, 1, 0)


def test_reset_drops_queues_and_keeps_memory(host: Host, disk: Queue) -> None:
    buffer = host.take(PAGE)
    assert disk.run(sqe(READ, prp1=buffer)).status == 0
    host.engine.reset()
    host.bell(2, 1)
    assert host.events()[0].kind == "invalid-doorbell-register"
    queue = host.queue(1)
    assert queue.run(sqe(READ, prp1=buffer)).status == 0


def test_an_engine_needs_running_threads() -> None:
    thread = IOThread(0)
    engine = Engine([thread], max_queues=1, mapped=False)
    ours, theirs = socket.socketpair()
    with pytest.raises(RuntimeError, match="running"):
        engine.open_channel(ours.fileno())
    ours.close()
    theirs.close()
    for max_queues in (0, 129):
        with pytest.raises(ValueError, match="max_queues"):
            Engine([thread], max_queues=max_queues, mapped=False)


def test_a_controller_takes_memory_for_the_queues_that_it_has() -> None:
    """512 of them in a server are no unusual number, 128 queues each what few ever make."""

    def resident() -> int:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    thread = IOThread(0)
    Engine([thread], max_queues=128, mapped=False)
    before = resident()
    engines = [Engine([thread], max_queues=128, mapped=False) for _ in range(50)]
    assert resident() - before < 50 * 100 * 1024
    assert len(engines) == 50


def test_threads_ask_for_the_shortest_slice() -> None:
    """Who wakes beside a busy process is let in at once only with a slice shorter than its own."""

    class Attributes(ctypes.Structure):  # sched_setattr(2)
        _fields_: ClassVar = [
            ("size", ctypes.c_uint32),
            ("policy", ctypes.c_uint32),
            ("flags", ctypes.c_uint64),
            ("nice", ctypes.c_int32),
            ("priority", ctypes.c_uint32),
            ("runtime", ctypes.c_uint64),
            ("deadline", ctypes.c_uint64),
            ("period", ctypes.c_uint64),
        ]

    def attributes(thread: int) -> Attributes:
        found = Attributes()
        call = ctypes.CDLL(None, use_errno=True).syscall
        if call(SCHED_GETATTR, thread, ctypes.byref(found), ctypes.sizeof(found), 0):
            pytest.skip(f"no sched_getattr: {os.strerror(ctypes.get_errno())}")
        return found

    before = set(os.listdir("/proc/self/task"))
    with running(1):
        if attributes(0).runtime == 0:
            pytest.skip("this kernel doesn't tell of slices: Linux 6.12 does")
        made = [attributes(int(task)) for task in set(os.listdir("/proc/self/task")) - before]
    assert [(found.policy, found.nice) for found in made if found.runtime == 100_000] == [
        (os.SCHED_OTHER, os.getpriority(os.PRIO_PROCESS, 0))
    ]


def test_pausing_under_load_loses_nothing() -> None:
    """Two IOThreads, three engines with two queues each, and maps that come and go."""
    with running(2) as threads:
        hosts = [Host(threads, size=32 * MIB) for _ in range(3)]
        backend = open_backend("memory", path=None, size=4 * MIB, lba=512, read_only=False)
        queues = []
        for host in hosts:
            host.attach(backend)
            queues += [host.queue(1, 32), host.queue(2, 64)]
            host.use_shadow()
        stop = threading.Event()
        failures: list[BaseException] = []

        def load(queue: Queue, seed: int) -> None:
            draw = random.Random(seed)
            buffer = queue.host.base + 16 * MIB + queue.qid * MIB
            try:
                while not stop.is_set():
                    count = draw.randrange(1, queue.entries)
                    queue.submit(
                        *(
                            sqe(draw.choice((READ, WRITE)), cid=i, lba=i, prp1=buffer)
                            for i in range(count)
                        )
                    )
                    done = queue.drain(count)
                    assert sorted(c.cid for c in done) == list(range(count))
                    assert not any(c.status for c in done)
            except BaseException as error:
                failures.append(error)

        workers = [threading.Thread(target=load, args=(queue, i)) for i, queue in enumerate(queues)]
        for worker in workers:
            worker.start()
        for turn in range(60):
            for host in hosts:
                host.engine.dma_map(1 << 40, PAGE * (turn + 1), host.fd, 0, 3)
                host.engine.dma_unmap(1 << 40, PAGE * (turn + 1))
                host.engine.set_vector(turn % 3, os.eventfd(0, os.EFD_NONBLOCK))
        stop.set()
        for worker in workers:
            worker.join()
        assert not failures
        for host in hosts:
            host.close()
        backend.close()


def test_deleting_a_queue_under_load(host: Host, disk: Queue) -> None:
    buffer = host.take(PAGE)
    for turn in range(50):
        queue = host.queue(2, 64)
        queue.submit(*(sqe(READ, cid=i, prp1=buffer) for i in range(63)))
        host.engine.delete_sq(2)
        host.engine.delete_cq(2)
        done = 0
        while (completion := queue.take(ring=False)) is not None:
            assert (completion.cid, completion.status) == (done, 0)
            done += 1
        host.used -= 2 * PAGE
        assert disk.run(sqe(READ, cid=turn, prp1=buffer)).cid == turn
