"""A submission queue is never asleep with work waiting; when it is rung for nothing."""

from dataclasses import replace
from typing import Literal

import pytest
from explorer import explore
from submission import ORDER, Compare, Op, Submission, inclusive, linux

BOTH = pytest.mark.parametrize("compare", [linux, inclusive], ids=["linux", "inclusive"])


@BOTH
@pytest.mark.parametrize(
    ("entries", "batch"), [(2, 1), (3, 1), (3, 2), (4, 1), (4, 3), (5, 1), (5, 4)]
)
def test_never_asleep_with_work_waiting(compare: Compare, entries: int, batch: int) -> None:
    result = explore(Submission(entries, entries - 1, batch, compare))
    assert result.holds, result.story()
    assert not result.ends, "a state with nothing left to do"
    print(f"{entries} entries, updates of up to {batch}: {result.states} states")


@pytest.mark.parametrize(
    ("entries", "depth", "refresh", "place"),
    [(4, 2, "always", "head"), (4, 2, "half", "head"), (6, 2, "half", "first")],
)
def test_how_often_eventidx_is_refreshed_is_no_matter_of_safety(
    entries: int, depth: int, refresh: Literal["half", "always"], place: Literal["first", "head"]
) -> None:
    result = explore(Submission(entries, depth, depth, refresh=refresh, place=place))
    assert result.holds, result.story()


BROKEN: dict[str, tuple[Op, ...]] = {
    "no fence": ("store", "load"),
    "load before store": ("load", "store", "fence"),
    "fence before store": ("fence", "store", "load"),
}


@BOTH
@pytest.mark.parametrize("side", ["driver", "device"])
@pytest.mark.parametrize("mistake", BROKEN)
def test_every_mistake_loses_a_wake_up(compare: Compare, side: str, mistake: str) -> None:
    order = BROKEN[mistake]
    driver, device = (order, ORDER) if side == "driver" else (ORDER, order)
    result = explore(Submission(3, 2, 2, compare, driver=driver, device=device))
    assert "LOST WAKE-UP" in result.trace[-1]
    print(f"{side}, {mistake}:\n{result.story()}")


def unrefreshed(entries: int) -> int:
    """How far behind a tail EventIdx can be: not stored anew, or just now, behind a short batch."""
    return max(-(-entries // 2) - 1, entries // 4 + 1)


@BOTH
@pytest.mark.parametrize(
    ("entries", "depth"), [(2, 1), (3, 1), (3, 2), (4, 1), (4, 2), (5, 1), (5, 2), (6, 2), (8, 2)]
)
def test_a_driver_overruns_eventidx_only_beyond_this_depth(
    compare: Compare, entries: int, depth: int
) -> None:
    """A register write for nothing because the tail came round to an EventIdx kept out of reach.

    EventIdx may be ``unrefreshed`` behind the tail last looked at. From there the driver can be
    ``depth`` ahead when the device looks again, and, its commands completed before EventIdx is
    stored, once more ``depth`` ahead of that. The exploration agrees to the entry.
    """
    reach = unrefreshed(entries) + 2 * depth
    overruns = reach > entries if compare is linux else reach >= entries
    result = explore(Submission(entries, depth, 1, compare, silent=frozenset({"overran"})))
    assert result.holds != overruns, result.story()


@BOTH
@pytest.mark.parametrize(("entries", "batch"), [(4, 1), (8, 2)])
def test_a_busy_refresh_never_meets_the_update_being_made(
    compare: Compare, entries: int, batch: int
) -> None:
    """A driver that has stored its tail, and not yet loaded EventIdx, doesn't find it moved there.

    That takes a place behind the first entry consumed: behind the last, it is in the update.
    """
    raced = frozenset({"raced"})
    model = Submission(entries, batch, batch, compare, sleeps=False, silent=raced)
    result = explore(model)
    assert result.holds, result.story()
    result = explore(replace(model, place="head"))
    assert "UNASKED" in result.trace[-1]
    print(result.story())


def test_linux_is_late_only_after_an_overrun_and_the_inclusive_form_always() -> None:
    """Armed at its own tail, the inclusive form rings for commands that are consumed already."""
    late = frozenset({"late"})
    assert explore(Submission(6, 2, 1, linux, silent=late)).holds
    assert not explore(Submission(6, 1, 1, inclusive, silent=late)).holds
