"""When a first interrupt waits for more completions: the rule, with simulated hosts."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowbell.dataplane.rules import Moderation

MS = 1_000_000
SECOND = 1000 * MS
LONGEST = 150_000
MOST = 16

# What a host does from one interrupt to the next: entries it takes, nanoseconds it needs.
Host = Callable[[bool], tuple[int, int]]


def run(
    host: Host, seconds: float, moderation: Moderation | None = None, start: float = 0
) -> tuple[float, int]:
    """The share of the entries that were told of while holding, and how many there were."""
    moderation = moderation or Moderation()
    now, held, total = int(start * SECOND) + 1, 0, 0
    end = (start + seconds) * SECOND
    while now < end:
        holding = moderation.holding
        entries, spent = host(holding)
        now += spent
        total += entries
        held += entries * holding
        moderation.told(now, entries)
    return held / total, total


def deep(holding: bool) -> tuple[int, int]:
    """Many commands under way, dear interrupts: 50 us each, and 20 us a command."""
    entries = 6 if holding else 1
    return entries, 50_000 + 20_000 * entries


def lone(holding: bool) -> tuple[int, int]:
    """One command at a time: holding its interrupt only makes it late."""
    return 1, 100_000 if holding else 60_000


def indifferent(holding: bool) -> tuple[int, int]:
    """Starts a command every 100 us, whatever we do."""
    return 1, 100_000


def test_a_host_that_gains_is_held_most_of_the_time() -> None:
    share, _ = run(deep, 5)
    assert share > 0.9


@pytest.mark.parametrize("host", [lone, indifferent])
def test_a_host_that_does_not_gain_is_tried_ever_more_seldom(host: Host) -> None:
    moderation = Moderation()
    first, _ = run(host, 2, moderation)
    assert 0 < first < 0.15
    later, _ = run(host, 20)
    assert later < 0.02


def test_a_host_that_changes_is_found_out() -> None:
    moderation = Moderation()
    run(deep, 2, moderation)
    share, _ = run(lone, 20, moderation, start=2)
    assert share < 0.1


def test_nothing_is_tried_where_interrupts_are_shared_already() -> None:
    share, _ = run(lambda holding: (8, 100_000), 3)
    assert share == 0


def test_a_slow_host_is_left_alone() -> None:
    share, total = run(lambda holding: (1, 5 * MS), 20)
    assert total > 1000
    assert share == 0


def test_an_end_of_the_load_ends_holding() -> None:
    moderation = Moderation()
    run(deep, 2, moderation)
    now = 2 * SECOND
    while not moderation.holding:
        now += 70_000
        moderation.told(now, 1)
    for _ in range(3):
        now += SECOND
        moderation.told(now, 1)
    assert not moderation.holding


@given(st.integers(1, 64), st.integers(1, 1 << 40), st.integers(0, 1 << 41))
def test_a_hold_has_an_end(entries: int, since: int, arrived: int) -> None:
    moderation = Moderation()
    assert moderation.held_until(entries, since, arrived) == 0
    now = 1
    while not moderation.holding:
        now += 70_000
        moderation.told(now, 1)
    until = moderation.held_until(entries, since, arrived)
    assert until <= since + LONGEST
    assert (until == 0) == (entries >= MOST)
