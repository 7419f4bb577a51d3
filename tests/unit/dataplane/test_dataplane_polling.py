"""IOThreads that never poll, and ones that always do."""

import threading
import time
from pathlib import Path

import pytest
from dataplane_host import FLUSH, Host, running, sqe, wait_until


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
