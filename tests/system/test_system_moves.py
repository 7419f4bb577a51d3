"""Queues move between IOThreads while they work, by hand, by load, or never."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shadowbell.config import ControllerConfig, NamespaceConfig, ServerConfig
from shadowbell.driver import Doorbells, Host, Load, LoadSpec, LoadStats, QueuePair, Verifier
from shadowbell.errors import UserError
from shadowbell.manage import Server
from shadowbell.placement import IOThreadQueues

SIZE = 32 << 20
MEMORY = NamespaceConfig(kind="memory", size=SIZE)
WAYS = ("trap", "shadow", "ioeventfd", "mapped")

pytestmark = pytest.mark.usefixtures("alarm")


@contextlib.contextmanager
def serving(path: Path, threads: int, **options: object) -> Iterator[Server]:
    config = ControllerConfig(socket=str(path), namespaces=(MEMORY,), **options)  # type: ignore[arg-type]
    server = Server(ServerConfig(controllers=(config,), iothreads=threads))
    thread = threading.Thread(target=server.run)
    try:
        server.start()
        thread.start()
        yield server
    finally:
        server.stop()
        if thread.ident is not None:
            thread.join()
        server.close()


def attach(path: Path, way: str) -> Host:
    doorbells: Doorbells = "trap" if way == "trap" else "mapped" if way == "mapped" else "shadow"
    return Host.connect(path, doorbells=doorbells, ioeventfds=way == "ioeventfd", timeout=20)


def served_by(server: Server) -> dict[int, int | None]:
    """The IOThread of every submission queue, as the ledger tells."""
    return {entry.qid: entry.iothread for entry in server.ledger()}


class Mover(threading.Thread):
    """Moves completion queues 1 to ``queues`` at random until it is stopped."""

    def __init__(self, server: Server, *, queues: int, iothreads: int, seed: int):
        super().__init__()
        self._server = server
        self._queues, self._iothreads = queues, iothreads
        self._chance = random.Random(seed)
        self._ended = threading.Event()
        self.moves = 0

    def run(self) -> None:
        while not self._ended.is_set():
            cqid = self._chance.randint(1, self._queues)
            with contextlib.suppress(UserError):  # deleted, not made again yet
                self.moves += self._server.move_queue(cqid, self._chance.randrange(self._iothreads))
            time.sleep(self._chance.choice((0, 0, 0.0005, 0.003)))

    def __enter__(self) -> Mover:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self.join()


def loads(host: Host, groups: list[list[QueuePair]], verifier: Verifier, seed: int) -> list[Load]:
    """A verified load for each group of queues that share a completion queue."""
    blocks = host.namespaces[1].blocks // len(groups) // 8 * 8
    return [
        Load(
            host,
            queues,
            LoadSpec(
                pattern="randrw",
                depth=min(8, queues[0].ring.room),
                first=number * blocks,
                length=blocks,
                seed=seed + number,
                sleep=queues[0].completions.vector is not None,
            ),
            verifier=verifier,
        )
        for number, queues in enumerate(groups)
    ]


def run_all(
    running: list[Load], seconds: float, meanwhile: Callable[[], None] | None = None
) -> list[LoadStats]:
    """Run the loads side by side; ``meanwhile`` is called again and again until they end."""
    found: list[LoadStats] = []
    threads = [
        threading.Thread(target=lambda load=load: found.append(load.run(seconds=seconds, stall=20)))
        for load in running
    ]
    for thread in threads:
        thread.start()
    while meanwhile is not None and any(thread.is_alive() for thread in threads):
        meanwhile()
    for thread in threads:
        thread.join()
    assert len(found) == len(running)
    return found


def make_groups(host: Host) -> list[list[QueuePair]]:
    """Polled, on interrupts, tiny, and three submission queues on one completion queue."""
    polled = host.create_queue_pair(64)
    sleeping = host.create_queue_pair(17, interrupts=True)
    tiny = host.create_queue_pair(2)
    first = host.create_queue_pair(32, interrupts=True)
    shared = [first, *(host.create_queue_pair(9, share=first.completions) for _ in range(2))]
    return [[polled], [sleeping], [tiny], shared]


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_lost_doubled_or_corrupted(tmp_path: Path, way: str) -> None:
    path = tmp_path / "s"
    chance = random.Random(way)
    fd = os.memfd_create("scratch")
    os.ftruncate(fd, 1 << 20)
    with (
        serving(path, 3, doorbells="mapped" if way == "mapped" else "trap") as server,
        attach(path, way) as host,
        Mover(server, queues=4, iothreads=3, seed=chance.getrandbits(32)) as mover,
    ):
        verifier = Verifier(host.namespaces[1].blocks, 512)
        groups = make_groups(host)

        def maps_come_and_go() -> None:
            where = 1 << 40
            host.client.dma_map(fd, 0, where, 1 << 20)
            time.sleep(chance.random() / 200)
            host.client.dma_unmap(where, 1 << 20)

        for turn in range(3):
            stats = run_all(
                loads(host, groups, verifier, 10 * turn + 1),
                0.7,
                maps_come_and_go if turn else None,
            )
            assert all(one.clean and one.ios for one in stats), stats
        assert mover.moves > 20
    os.close(fd)


@pytest.mark.parametrize("way", WAYS)
def test_queues_are_deleted_and_made_while_they_move(tmp_path: Path, way: str) -> None:
    path = tmp_path / "s"
    with (
        serving(path, 2, doorbells="mapped" if way == "mapped" else "trap") as server,
        attach(path, way) as host,
        Mover(server, queues=3, iothreads=2, seed=5) as mover,
    ):
        verifier = Verifier(host.namespaces[1].blocks, 512)
        lasting = host.create_queue_pair(64)
        fleeting = [host.create_queue_pair(16, interrupts=True) for _ in range(2)]

        def replace() -> None:
            pair = fleeting.pop(0)
            pair.flush(1)
            host.delete_queue_pair(pair)
            fleeting.append(host.create_queue_pair(16, interrupts=True))
            fleeting[-1].flush(1)

        (stats,) = run_all(loads(host, [[lasting]], verifier, 1), 1.5, replace)
        assert stats.clean, stats
        assert stats.ios
        assert mover.moves > 20


@pytest.mark.parametrize("way", WAYS)
def test_resets_while_queues_move(tmp_path: Path, way: str) -> None:
    path = tmp_path / "s"
    chance = random.Random(way)
    with (
        serving(path, 2, doorbells="mapped" if way == "mapped" else "trap") as server,
        attach(path, way) as host,
        Mover(server, queues=4, iothreads=2, seed=6) as mover,
    ):
        verifier = Verifier(host.namespaces[1].blocks, 512)
        for turn in range(6):
            groups = make_groups(host)
            due = [time.monotonic() + chance.uniform(0.01, 0.2)]

            def reset_once(due: list[float] = due, turn: int = turn) -> None:
                time.sleep(0.002)
                if due and time.monotonic() > due[0]:
                    due.clear()
                    host.reset(device=bool(turn & 1))

            for stats in run_all(loads(host, groups, verifier, turn + 1), 0.4, reset_once):
                assert (stats.mismatches, stats.violations, stats.stalled) == (0, 0, False), stats
        stats = run_all(loads(host, make_groups(host), verifier, 99), 0.3)
        assert all(one.clean and one.ios for one in stats), stats
        assert mover.moves > 5


def test_queues_on_one_completion_queue_stay_together(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with serving(path, 3) as server, Host.connect(path) as host:
        alone = host.create_queue_pair(8)
        first = host.create_queue_pair(8)
        shared = [first, *(host.create_queue_pair(8, share=first.completions) for _ in range(3))]
        before = served_by(server)[alone.qid]
        for iothread in (2, 0, 1, 1):
            assert server.move_queue(first.completions.qid, iothread)
            shared.append(host.create_queue_pair(8, share=first.completions))
            places = served_by(server)
            assert {places[pair.qid] for pair in shared} == {iothread}
            assert places[alone.qid] == before
            assert places[0] is None
            for pair in shared:
                pair.flush(1)


def test_what_cant_move(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with serving(path, 2) as server, Host.connect(path) as host:
        pair = host.create_queue_pair(8)
        for cqid, iothread in ((0, 0), (2, 0), (-1, 0), (pair.qid, 2), (pair.qid, -1)):
            with pytest.raises(UserError, match=r"no completion queue|no IOThread"):
                server.move_queue(cqid, iothread)
        with pytest.raises(UserError, match="no controller"):
            server.move_queue(pair.qid, 1, controller="/nowhere")
        pair.flush(1)


def test_a_map_is_obeyed_and_lasts(tmp_path: Path) -> None:
    path = tmp_path / "s"
    queues = (IOThreadQueues(iothread=2, queues=(1, 3)), IOThreadQueues(iothread=0, queues=(2, 4)))
    with serving(path, 3, max_queues=4, iothreads=queues) as server, Host.connect(path) as host:
        verifier = Verifier(host.namespaces[1].blocks, 512)
        pairs = [host.create_queue_pair(64) for _ in range(4)]
        places = {0: None, 1: 2, 2: 0, 3: 2, 4: 0}
        assert served_by(server) == places
        for stats in run_all(loads(host, [[pairs[0]], [pairs[2]]], verifier, 1), 1.5):
            assert stats.clean, stats
        assert served_by(server) == places
        host.reset()
        host.create_queue_pair(8)
        assert served_by(server)[1] == 2


def test_load_spreads_over_iothreads(tmp_path: Path) -> None:
    """Two hot queues begin on one IOThread, an idle one on the other."""
    path = tmp_path / "s"
    with serving(path, 2) as server, Host.connect(path) as host:
        pairs = [host.create_queue_pair(64) for _ in range(3)]
        places = served_by(server)
        assert places[1] == places[3] != places[2]
        specs = [LoadSpec(pattern="randread", block_size=131072, depth=16, seed=n) for n in (1, 2)]
        hot = [
            Load(host, [pair], spec) for pair, spec in zip((pairs[0], pairs[2]), specs, strict=True)
        ]
        spread = threading.Event()

        def look() -> None:
            places = served_by(server)
            if places[1] != places[3]:
                spread.set()
                for load in hot:
                    load.stop()
            time.sleep(0.05)

        for stats in run_all(hot, 60, look):
            assert stats.clean, stats
        assert spread.is_set()
