"""When a first interrupt waits for more completions: the rule, with simulated hosts."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowbell.dataplane.rules import Moderation

MS = 1_000_000
SECOND = 1000 * MS
LONGEST = 2_000_000
QUIET = 40_000
LONGEST_QUIET = 600_000
MOST = 16

# What a host does from one interrupt to the next: entries it takes, nanoseconds it needs.
Host = Callable[[bool], tuple[int, int]]


def run(
    host: Host,
    seconds: float,
    moderation: Moderation | None = None,
    start: float = 0,
    *,
    waits: bool = False,
) -> tuple[float, int]:
    """The share of the entries that were told of while holding, and how many there were.

    ``waits``: the host submits nothing while its interrupt is held.
    """
    moderation = moderation or Moderation()
    now, held, total = int(start * SECOND) + 1, 0, 0
    end = (start + seconds) * SECOND
    while now < end:
        holding = moderation.holding
        entries, spent = host(holding)
        now += spent
        total += entries
        held += entries * holding
        moderation.told(now, entries, alone=waits)
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


@pytest.mark.parametrize("host", [lone, indifferent])
def test_trials_do_not_show_in_the_slowest_thousandth(host: Host) -> None:
    """After a minute of it; of a host that waits for each command in the slowest ten thousandth."""
    for waits, most in ((False, 0.001), (True, 0.0001)):
        moderation = Moderation()
        run(host, 60, moderation, waits=waits)
        assert run(host, 120, moderation, start=60, waits=waits)[0] < most


def test_a_host_that_waits_ends_a_trial_with_its_eighth_command() -> None:
    moderation = Moderation()
    now = trial(moderation, 100_000)
    for _ in range(7):
        now += 300_000
        moderation.told(now, 1, alone=True)
        assert moderation.holding
    moderation.told(now + 300_000, 1, alone=True)
    assert not moderation.holding


def test_a_host_that_comes_to_wait_ends_holding_at_once() -> None:
    """Deep until now, and from now on one command at a time."""
    moderation = Moderation()
    run(deep, 2, moderation)
    share, total = run(lone, 0.5, moderation, start=2, waits=True)
    assert share * total <= 16 + 3 * 8


def test_a_host_that_now_and_then_submits_nothing_is_still_held() -> None:
    moderation = Moderation()
    run(deep, 2, moderation)
    now, held = 2 * SECOND, 0
    for number in range(10_000):
        now += 50_000 + 20_000 * (6 if moderation.holding else 1)
        held += moderation.holding
        moderation.told(now, 6 if moderation.holding else 1, alone=number % 4 == 0)
    assert held > 8000


def trial(moderation: Moderation, gap: int) -> int:
    """Until a trial of a host that takes an entry every ``gap`` nanoseconds; returns the time."""
    now = 1
    while not moderation.holding:
        now += gap
        moderation.told(now, 1)
    return now


@pytest.mark.parametrize(
    ("gap", "quiet"), [(1000, QUIET), (60_000, 120_000), (500_000, LONGEST_QUIET)]
)
def test_a_first_interrupt_waits_for_the_time_of_two_commands(gap: int, quiet: int) -> None:
    moderation = Moderation()
    now = trial(moderation, gap)
    until = moderation.held_until(1, now, now)
    assert quiet * 0.99 <= until - now <= quiet * 1.01


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
    trial(moderation, 70_000)
    until = moderation.held_until(entries, since, arrived)
    assert until <= since + LONGEST
    assert until <= arrived + LONGEST_QUIET
    assert (until == 0) == (entries >= MOST)
