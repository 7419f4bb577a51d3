from collections.abc import Iterator

import pytest
from dataplane_host import Host, Queue, held, running

from shadowbell.dataplane import IOThread


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Objects may live as long as their test's fixtures, but not what they hold."""
    before = held()
    yield
    assert held() == before


@pytest.fixture
def iothreads(_nothing_left: None) -> Iterator[list[IOThread]]:
    with running() as threads:
        yield threads


@pytest.fixture
def host(iothreads: list[IOThread]) -> Iterator[Host]:
    """A host with all its memory mapped at 0 and no namespace."""
    made = Host(iothreads)
    yield made
    made.close()


@pytest.fixture
def disk(host: Host) -> Iterator[Queue]:
    """An I/O queue pair with a memory namespace of 8 MiB and 512-byte blocks."""
    backend = host.attach_memory()
    yield host.queue(1)
    host.engine.close()
    backend.close()
