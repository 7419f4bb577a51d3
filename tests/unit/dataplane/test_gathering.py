"""How many completions of other threads' a thread sleeps for: the rule, with simulated storage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowbell.dataplane.rules import Gathering

US = 1000
MS = 1_000_000
LOOK = 10 * MS


def storage(
    under_way: int, latency: int, spacing: int, *, waits: float, stuck: int = 0
) -> Gathering:
    """A thread that has served it for a while: `waits` is how much of what it ran it waited too.

    `stuck` more are under way that never end.
    """
    gathering = Gathering()
    for _ in range(under_way + stuck):
        gathering.await_end()
    for _ in range(200):
        gathering.has_ended(latency)
        gathering.await_end()
    ran = 2 * MS
    gathering.look(LOOK, ran, int(ran * waits), LOOK // spacing)
    gathering.look(2 * LOOK, 2 * ran, int(2 * ran * waits), 2 * (LOOK // spacing))
    return gathering


def test_where_processors_are_idle_nothing_changes() -> None:
    assert storage(32, 4 * MS, 125 * US, waits=0.0).rest() == (0, 0)
    assert storage(32, 4 * MS, 125 * US, waits=0.1).rest() == (0, 0)


def test_a_kernel_without_statistics_counts_as_idle() -> None:
    gathering = Gathering()
    gathering.await_end()
    gathering.look(LOOK, 0, 0, 0)
    assert gathering.rest() == (0, 0)


def test_where_they_are_short_a_quarter_of_what_is_under_way_gathers() -> None:
    share, longest = storage(32, 4 * MS, 125 * US, waits=3.0).rest()
    assert 7 <= share <= 8  # the average of the latencies ends a little below them
    assert longest == 2 * share * 125 * US


@pytest.mark.parametrize("under_way", range(1, 8))
def test_the_first_one_wakes_it_when_few_are_under_way(under_way: int) -> None:
    assert storage(under_way, 1 * MS, MS // under_way, waits=1.0).rest() == (1, 0)


def test_nothing_is_awaited_once_all_have_ended() -> None:
    gathering = storage(1, 1 * MS, 1 * MS, waits=1.0)
    gathering.has_ended(1 * MS)
    assert gathering.rest() == (0, 0)
    with pytest.raises(ValueError, match="nothing"):
        gathering.has_ended(1)


def test_one_that_goes_on_does_not_wait_for_many_that_are_stuck() -> None:
    assert storage(1, 1 * MS, 1 * MS, waits=1.0, stuck=100).rest() == (1, 0)


def test_slow_storage_is_not_waited_for_long() -> None:
    share, longest = storage(64, 64 * MS, 1 * MS, waits=1.0).rest()
    assert share == 2
    assert longest == 4 * MS


def test_it_is_looked_every_ten_milliseconds() -> None:
    gathering = storage(8, 1 * MS, MS // 8, waits=1.0)
    assert not gathering.must_look(3 * LOOK - 1)
    assert gathering.must_look(3 * LOOK)


@given(
    st.integers(1, 1024),
    st.integers(0, 10**10),
    st.integers(1, LOOK),
    st.floats(0, 100),
    st.integers(0, 100),
)
def test_it_always_sleeps_for_something_that_is_under_way(
    under_way: int, latency: int, spacing: int, waits: float, stuck: int
) -> None:
    share, longest = storage(under_way, latency, spacing, waits=waits, stuck=stuck).rest()
    assert 0 <= share <= max(1, (under_way + stuck) // 4)
    assert longest <= 4 * MS
    assert (longest == 0) == (share <= 1)
