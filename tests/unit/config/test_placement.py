"""Which IOThread a configuration gives to which queue, and the maps it refuses."""

from pathlib import Path

import pytest

from shadowbell.config import ControllerConfig, NamespaceConfig, ServerConfig, load
from shadowbell.errors import UserError
from shadowbell.placement import IOThreadQueues, place_queues

NULL = NamespaceConfig(kind="null", size=4096)


def entry(iothread: int, *queues: int) -> IOThreadQueues:
    return IOThreadQueues(iothread=iothread, queues=queues)


def test_queues_take_the_listed_iothreads_in_turn() -> None:
    assert place_queues((1, 0, 4), 7) == (1, 0, 4, 1, 0, 4, 1)
    assert place_queues((IOThreadQueues(iothread=2), 0), 3) == (2, 0, 2)


def test_lists_place_every_queue() -> None:
    assert place_queues((entry(1, 2, 3), entry(0, 1)), 3) == (0, 1, 1)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ((), "is empty"),
        ((-1,), "no I/O thread -1"),
        ((0, 1, 0), "I/O thread 0 is listed twice"),
        ((entry(0, 1, 2), 1), "I/O thread 1 lists no queues but another does"),
        ((entry(0, 1, 2), entry(1, 2, 3)), "queue 2 is listed twice"),
        ((entry(0, 1, 1),), "queue 1 is listed twice"),
        ((entry(0, 0, 1, 2, 3),), "no queue 0: max_queues allows 1 to 3"),
        ((entry(0, 4),), "no queue 4"),
        ((entry(0, 1, 3),), "queue 2 has no I/O thread"),
        ((entry(0, 1, 2, 3), entry(0)), "listed twice"),
    ],
)
def test_bad_maps_say_what_is_wrong(entries: tuple[int | IOThreadQueues, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        place_queues(entries, 3)
    with pytest.raises(UserError, match=words):
        ControllerConfig(socket="/a", namespaces=(NULL,), max_queues=3, iothreads=entries)


def test_a_file_maps_queues_and_pins_threads(tmp_path: Path) -> None:
    path = tmp_path / "vm.toml"
    path.write_text(
        """
iothreads = 2
iothread_cpus = [0, 0]

[[controller]]
socket = "/a"
namespace = "null:1G"
iothreads = [1]

[[controller]]
socket = "/b"
namespace = "null:1G"
max_queues = 3
iothreads = [{ iothread = 1, queues = [1, 3] }, { iothread = 0, queues = [2] }]
"""
    )
    config = load(path)
    assert config.iothread_cpus == (0, 0)
    first, second = config.controllers
    assert first.queue_threads == (1,) * 64
    assert second.queue_threads == (1, 0, 1)
    assert ControllerConfig(socket="/c", namespaces=(NULL,)).queue_threads is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("iothreads = [0, 'a']", "iothreads"),
        ("iothreads = 0", "iothreads"),
        ("iothreads = [{ queues = [1] }]", "iothread"),
        ("iothreads = [{ iothread = 0, vqs = [1] }]", "vqs"),
        ("iothreads = [2]", "/a: there is no I/O thread 2: iothreads is 2, so use 0 to 1"),
    ],
)
def test_files_with_bad_maps(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "vm.toml"
    path.write_text(
        f'iothreads = 2\n[[controller]]\nsocket = "/a"\nnamespace = "null:1G"\n{line}\n'
    )
    with pytest.raises(UserError, match=words):
        load(path)


@pytest.mark.parametrize(
    ("cpus", "words"),
    [((0,), "1 processors for 2 I/O threads"), ((0, 99999), "processor 99999 isn't there")],
)
def test_processors_that_cant_be(cpus: tuple[int, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ServerConfig(
            controllers=(ControllerConfig(socket="/a", namespaces=(NULL,)),),
            iothreads=2,
            iothread_cpus=cpus,
        )
