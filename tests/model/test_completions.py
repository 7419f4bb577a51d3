"""A completion queue that was full: a device that waits for room is rung when there is some."""

import pytest
from completions import Completions
from explorer import explore
from submission import ORDER, Compare, Op, inclusive, linux
from test_submission import BOTH, BROKEN


@BOTH
@pytest.mark.parametrize("entries", [2, 3, 4])
def test_never_asleep_beside_room(compare: Compare, entries: int) -> None:
    result = explore(Completions(entries, compare=compare))
    assert result.holds, result.story()
    print(f"{entries} entries: {result.states} states")


@BOTH
@pytest.mark.parametrize("side", ["host", "device"])
@pytest.mark.parametrize("mistake", BROKEN)
def test_every_mistake_loses_a_wake_up(compare: Compare, side: str, mistake: str) -> None:
    order: tuple[Op, ...] = BROKEN[mistake]
    host, device = (order, ORDER) if side == "host" else (ORDER, order)
    result = explore(Completions(3, compare=compare, host=host, device=device))
    assert "LOST WAKE-UP" in result.trace[-1]


@BOTH
@pytest.mark.parametrize("entries", [2, 3])
def test_shared_by_two_submission_queues(compare: Compare, entries: int) -> None:
    result = explore(Completions(entries, queues=2, depth=1, compare=compare))
    assert result.holds, result.story()


def test_whoever_finds_room_must_rouse_the_others() -> None:
    """One queue sleeps, the other finds the room and disarms: nobody is told of the next head."""
    result = explore(Completions(2, queues=2, depth=1, rouse=False))
    assert "LOST WAKE-UP" in result.trace[-1]
    print(result.story())


def test_forms_differ() -> None:
    assert inclusive(3, 3, 2)
    assert not linux(3, 3, 2)
