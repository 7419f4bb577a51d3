"""When moving a queue is worth it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowbell.manage.balancer import GAIN, OVERLOADED, Load, Queue, choose_move


def loads(*entries: tuple[int, int], fixed: bool = False) -> dict[Queue, Load]:
    """Queues of one disk from (IOThread, work)."""
    return {Queue(0, n): Load(thread, work, fixed) for n, (thread, work) in enumerate(entries, 1)}


def test_the_second_of_two_hot_queues_moves() -> None:
    move = choose_move([1.0, 0.0], loads((0, 500), (0, 500), (1, 0)))
    assert move is not None
    assert (move.source, move.target) == (0, 1)
    assert move.queue.cqid in (1, 2)


def test_the_best_move_evens_the_load_most() -> None:
    move = choose_move([0.9, 0.1], loads((0, 100), (0, 400), (0, 400), (1, 100)))
    assert move is not None
    assert move.queue.cqid in (2, 3)


@pytest.mark.parametrize(
    ("busy", "queues"),
    [
        ([1.0, 0.0], loads((0, 1000))),
        ([1.0, 0.0], loads((0, 1000), (0, 0), (1, 0))),
        ([1.0, 0.9], loads((0, 500), (0, 500), (1, 500))),
        ([0.3, 0.0], loads((0, 500), (0, 500))),
        ([1.0, 0.0], loads((0, 500), (0, 500), fixed=True)),
        ([1.0, 0.0], {}),
    ],
    ids=["one queue", "one loaded queue", "no room", "not overloaded", "mapped", "unknown"],
)
def test_nothing_moves_without_gain(busy: list[float], queues: dict[Queue, Load]) -> None:
    assert choose_move(busy, queues) is None


@given(st.data())
def test_a_move_always_spares_the_busiest(data: st.DataObject) -> None:
    threads = data.draw(st.integers(2, 5))
    busy = data.draw(st.lists(st.floats(0, 1), min_size=threads, max_size=threads))
    place = st.tuples(st.integers(0, threads - 1), st.integers(0, 10**6), st.booleans())
    queues = {
        Queue(0, n): Load(*entry)
        for n, entry in enumerate(data.draw(st.lists(place, max_size=20)), 1)
    }
    move = choose_move(busy, queues)
    if move is None:
        return
    moved = queues[move.queue]
    assert not moved.fixed
    assert moved.iothread == move.source
    assert busy[move.source] == max(busy) >= OVERLOADED
    share = (
        busy[move.source]
        * moved.work
        / sum(load.work for load in queues.values() if load.iothread == move.source)
    )
    assert busy[move.source] - share < max(busy) - GAIN + 1e-9
    assert busy[move.target] + share < max(busy) - GAIN + 1e-9
