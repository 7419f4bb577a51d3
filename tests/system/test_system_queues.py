"""Many queues, shared completion queues, and queues that vanish under load."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from serving import SERVE, SOCKET, Attach, Serve
from shadowbell.driver import (
    CommandError,
    DeviceGone,
    Doorbells,
    Host,
    Load,
    LoadSpec,
    LoadStats,
    QueuePair,
    Verifier,
    run_load,
)
from shadowbell.guest import Served
from shadowbell.nvme import IoOpcode, Status, SubmissionEntry


def descriptors(served: Served) -> int:
    return len(os.listdir(f"/proc/{served.pid}/fd"))


def mappings(served: Served) -> int:
    """Mappings of memfds: what clients gave."""
    return Path(f"/proc/{served.pid}/maps").read_text().count("shadowbell-driver")


def in_threads(loads: list[Load], between: Callable[[], None], seconds: float) -> list[LoadStats]:
    """Run loads side by side; ``between`` happens in the middle."""
    found: list[LoadStats] = []
    threads = [
        threading.Thread(target=lambda load=load: found.append(load.run(seconds=seconds)))
        for load in loads
    ]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 2)
    between()
    for thread in threads:
        thread.join()
    return found


def parts(host: Host, queues: list[QueuePair]) -> list[Load]:
    """A verified load for each queue, each on blocks of its own."""
    blocks = host.namespaces[1].blocks // len(queues) // 8 * 8
    verifier = Verifier(host.namespaces[1].blocks, host.lba_size(1))
    return [
        Load(
            host,
            [queue],
            LoadSpec(
                pattern="randrw",
                depth=8,
                first=number * blocks,
                length=blocks,
                seed=number,
                sleep=queue.completions.vector is not None,
            ),
            verifier=verifier,
        )
        for number, queue in enumerate(queues)
    ]


def test_as_many_queues_as_granted(serve: Serve, attach: Attach, way: Doorbells) -> None:
    host = attach(
        serve("memory:64M", "--max-queues", "128", *SERVE[way]), way, arena_size=128 << 20
    )
    assert host.max_queues == 128
    queues = [host.create_queue_pair(16, interrupts=bool(n & 1)) for n in range(128)]
    for queue in queues:
        queue.write(1, queue.qid, bytes([queue.qid]) * 512)
    for queue in queues:
        assert queue.read(1, 129 - queue.qid, 1) == bytes([129 - queue.qid]) * 512
    polled = [queue for queue in queues if queue.completions.vector is None]
    verifier = Verifier(host.namespaces[1].blocks, 512)
    spec = LoadSpec(pattern="randrw", depth=8)
    assert run_load(host, polled, spec, seconds=1, verifier=verifier).clean
    with pytest.raises(CommandError) as caught:
        host.create_queue_pair(16, qid=129)
    assert caught.value.status == Status.INVALID_QUEUE_IDENTIFIER


def test_queues_on_several_iothreads(serve: Serve, attach: Attach) -> None:
    host = attach(serve("memory:64M", "--iothreads", "3"))
    queues = [host.create_queue_pair(64, interrupts=True) for _ in range(6)]
    for stats in in_threads(parts(host, queues), lambda: None, 1.0):
        assert stats.clean
        assert stats.ios > 100


def test_submission_queues_share_a_completion_queue(
    serve: Serve, attach: Attach, way: Doorbells
) -> None:
    host = attach(serve("memory:64M", *SERVE[way]), way)
    first = host.create_queue_pair(64, interrupts=True)
    shared = [first] + [host.create_queue_pair(17, share=first.completions) for _ in range(3)]
    verifier = Verifier(host.namespaces[1].blocks, 512)
    for sleep in (False, True):
        spec = LoadSpec(pattern="randrw", depth=12, sleep=sleep)
        stats = run_load(host, shared, spec, ios=20000, verifier=verifier)
        assert stats.clean
        assert stats.ios == 20000
    host.delete_queue_pair(first)
    assert run_load(host, shared[1:], spec, ios=2000, verifier=verifier).clean
    for pair in shared[1:]:
        host.delete_queue_pair(pair)
    assert not host.queues
    assert not host.completion_queues


def test_completion_queue_smaller_than_what_runs(serve: Serve, attach: Attach) -> None:
    """The device stalls for room in the completion queue and loses nothing."""
    host = attach(serve("memory:64M"), "shadow")
    small = host.create_queue_pair(2)
    big = host.create_queue_pair(64, share=small.completions)
    verifier = Verifier(host.namespaces[1].blocks, 512)
    spec = LoadSpec(pattern="randrw", depth=1)
    assert run_load(host, [small], spec, ios=500, verifier=verifier).clean
    spec = LoadSpec(pattern="randrw", depth=60)
    assert run_load(host, [big], spec, ios=3000, verifier=verifier).clean


def test_queue_identifiers_are_reused(serve: Serve, attach: Attach, way: Doorbells) -> None:
    host = attach(serve("memory:16M", *SERVE[way]), way)
    for number in range(60):
        queue = host.create_queue_pair(2 + number % 7)
        assert queue.qid == 1
        for lba in range(5):
            queue.write(1, lba, bytes([number]) * 512)
        assert queue.read(1, 4, 1) == bytes([number]) * 512
        host.delete_queue_pair(queue)
    assert host.arena.free_bytes > 60 << 20


def test_delete_under_load(serve: Serve, attach: Attach, way: Doorbells) -> None:
    host = attach(serve("memory:64M", *SERVE[way]), way)
    for _ in range(5):
        queues = [host.create_queue_pair(64) for _ in range(2)]

        def delete(victim: QueuePair = queues[0]) -> None:
            victim.ring.kill()
            host.delete_queue_pair(victim)

        killed, kept = sorted(
            in_threads(parts(host, queues), delete, 0.3), key=lambda stats: stats.clean
        )
        assert killed.broken
        assert kept.clean
        assert killed.mismatches == kept.mismatches == 0
        host.delete_queue_pair(queues[1])
    assert host.create_queue_pair().read(1, 0, 1)


def test_delete_aborts_or_completes_what_runs(serve: Serve, attach: Attach) -> None:
    host = attach(serve("{folder}/disk.img", image=64 << 20))
    queue = host.create_queue_pair(64)
    memory = host.arena.allocate(4096)
    sqe = SubmissionEntry(opcode=IoOpcode.READ, nsid=1, prp1=memory.iova, cdw12=7)
    submitted = {queue.submit(sqe, ring=False) for _ in range(40)}
    queue.ring.ring()
    host.admin.delete_sq(queue.qid)
    completed = {}
    for completion in queue.poll():
        completed[completion.cid] = completion.status
    assert completed.keys() <= submitted
    assert set(completed.values()) <= {0, Status.COMMAND_ABORTED_DUE_TO_SQ_DELETION}
    time.sleep(0.05)
    assert queue.poll() == []  # nothing completes after the deletion has


@pytest.mark.parametrize("device", [False, True], ids=["cc.en", "device_reset"])
def test_reset_under_load(serve: Serve, attach: Attach, way: Doorbells, device: bool) -> None:
    served = serve("memory:64M", *SERVE[way])
    host = attach(served, way)
    verifier = Verifier(host.namespaces[1].blocks, 512)
    before = 0
    for number in range(8):
        queue = host.create_queue_pair(64, interrupts=bool(number & 1))
        spec = LoadSpec(
            pattern="randrw", depth=32, seed=number, block_size=4096, sleep=bool(number & 1)
        )
        load = Load(host, [queue], spec, verifier=verifier)
        (stats,) = in_threads([load], lambda: host.reset(device=device), 0.2)
        assert stats.broken
        assert stats.mismatches == stats.errors == stats.violations == 0
        if number == 1:  # by now every vector in use has its descriptors
            before = descriptors(served)
    assert descriptors(served) <= before
    queue = host.create_queue_pair(64)
    spec = LoadSpec(pattern="read", depth=8, block_size=65536)
    stats = run_load(host, [queue], spec, ios=1024, verifier=verifier)
    assert stats.clean


def test_nothing_is_written_after_a_reset(serve: Serve, attach: Attach, way: Doorbells) -> None:
    """Memory of the queues before is the host's again: nobody may write there."""
    host = attach(serve("memory:64M", *SERVE[way]), way)
    for _ in range(5):
        queue = host.create_queue_pair(64)
        load = Load(host, [queue], LoadSpec(depth=32))
        (stats,) = in_threads([load], host.reset, 0.1)
        assert stats.broken
        free = host.arena.allocate(host.arena.free_bytes // 2, fill=None)
        free.view[:] = b"\xa5" * free.size
        time.sleep(0.02)
        assert bytes(free.view) == b"\xa5" * free.size
        free.free()


def test_disconnect_under_load(serve: Serve, attach: Attach, way: Doorbells) -> None:
    served = serve("memory:64M", *SERVE[way])
    verifier = None
    fds = maps = 0
    for number in range(8):
        host = Host.connect(served.socket(SOCKET), doorbells=way)
        verifier = verifier or Verifier(host.namespaces[1].blocks, 512)
        queue = host.create_queue_pair(64, interrupts=True)
        spec = LoadSpec(pattern="randrw", depth=32, seed=number, sleep=bool(number & 1))
        load = Load(host, [queue], spec, verifier=verifier)
        (stats,) = in_threads([load], partial(host.detach, shut_down=False), 0.2)
        assert stats.mismatches == stats.errors == stats.violations == 0
        wait_for(lambda: mappings(served) == 0)
        fds = fds or descriptors(served)
        maps += mappings(served)
    assert maps == 0
    assert descriptors(served) <= fds + 1


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)


def test_submission_after_the_server_is_gone(serve: Serve, attach: Attach) -> None:
    host = Host.connect(serve("memory:16M", "--no-dbbuf").socket(SOCKET), doorbells="trap")
    queue = host.create_queue_pair()
    host.client.close()
    with pytest.raises((DeviceGone, OSError)):
        queue.read(1, 0, 1)
    host.detach()


def test_wrong_doorbell_values_harm_nobody(serve: Serve, attach: Attach, way: Doorbells) -> None:
    host = attach(serve("memory:16M", *SERVE[way]), way)
    good, bad = host.create_queue_pair(16), host.create_queue_pair(16)
    host.admin.request_event()
    bad.ring.write_doorbell(16)
    bad.ring.write_doorbell(0xFFFF)
    assert good.read(1, 0, 1) == bytes(512)
    assert run_load(host, [good], LoadSpec(depth=8), ios=5000).clean
    events = host.admin.events(timeout=2)
    assert [(event.type, event.information) for event in events] == [(0, 1)]
    host.reset()
    assert host.create_queue_pair(16).read(1, 0, 1) == bytes(512)


@pytest.mark.parametrize("end", ["hang up", "reset"])
def test_a_load_has_given_its_memory_back_when_its_queue_goes(
    serve: Serve, attach: Attach, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    def late(results: dict[str, Any], block_size: int) -> LoadStats:
        time.sleep(0.2)  # the loop has ended, and the thread hasn't gone on yet
        return of(results, block_size)

    of = LoadStats.of
    monkeypatch.setattr(LoadStats, "of", late)
    host = attach(serve("null:1G"))
    free = host.arena.free_bytes
    load = Load(host, [host.create_queue_pair(64)], LoadSpec(depth=32))
    thread = threading.Thread(target=load.run, kwargs={"seconds": 30})
    thread.start()
    time.sleep(0.2)
    if end == "reset":
        host.reset()
        assert host.arena.free_bytes == free
    else:
        host.detach(shut_down=False)
    thread.join(5)
    assert not thread.is_alive()
