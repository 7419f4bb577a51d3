"""A queue that moves between IOThreads misses no doorbell, and never has two servers."""

from dataclasses import replace

import pytest
from explorer import explore
from moves import Moving


@pytest.mark.parametrize("messages", [1, 2])
def test_no_doorbell_is_missed(messages: int) -> None:
    result = explore(Moving(messages))
    assert result.holds, result.story()
    assert all(end.control == "end" and end.head == messages for end in result.ends)
    assert result.ends
    print(f"{messages} messages: {result.states} states")


@pytest.mark.parametrize("fence", ["ring_fence", "adopt_fence"])
def test_without_a_fence_a_doorbell_is_missed(fence: str) -> None:
    result = explore(replace(Moving(), **{fence: False}))  # type: ignore[arg-type]
    assert "LOST" in result.trace[-1]
    print(result.story())


@pytest.mark.parametrize("messages", [1, 2])
def test_a_move_is_called_off_while_it_waits(messages: int) -> None:
    """The call races with the command's end: the queue moves or stays, and misses no doorbell."""
    result = explore(Moving(messages, command="ends"))
    assert result.holds, result.story()
    assert {end.control for end in result.ends} == {"end", "stays"}
    assert all(end.head == messages for end in result.ends)
    print(f"{messages} messages: {result.states} states")


def test_a_command_that_never_ends_holds_up_nobody() -> None:
    """But for who has all the patience: the control plane of this model may."""
    result = explore(Moving(1, command="stuck"))
    assert result.holds, result.story()
    assert {end.control for end in result.ends} == {"stays"}
    assert all(end.head == 1 for end in result.ends)


@pytest.mark.parametrize(
    ("mistake", "what"),
    [
        ("keep_looks", "LOST"),
        ("call_asks", "LOST"),
        ("call_fence", "STUCK"),
        ("call_kicks", "STUCK"),
        ("last_try", "STUCK"),
    ],
)
def test_every_mistake_of_a_called_off_move_shows(mistake: str, what: str) -> None:
    command = "ends" if what == "LOST" else "stuck"
    result = explore(replace(Moving(1, command=command), **{mistake: False}))  # type: ignore[arg-type]
    print(result.story())
    assert what in result.trace[-1]


def test_a_ring_is_not_wiped_out_after_the_queue_has_its_thread() -> None:
    result = explore(replace(Moving(), clear_first=False))
    print(result.story())
    assert not result.holds
