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


def test_a_ring_is_not_wiped_out_after_the_queue_has_its_thread() -> None:
    result = explore(replace(Moving(), clear_first=False))
    print(result.story())
    assert not result.holds
