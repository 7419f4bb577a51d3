"""An IOThread is never asleep with as many notes as it sleeps for."""

import pytest
from explorer import explore
from notes import Look, Notes, Op


@pytest.mark.parametrize(
    ("posters", "shares"), [(1, (1,)), (2, (1,)), (2, (1, 2)), (3, (1,)), (3, (1, 3))]
)
def test_never_asleep_with_enough_notes(posters: int, shares: tuple[int, ...]) -> None:
    result = explore(Notes(posters, shares))
    assert result.holds, result.story()
    print(f"{posters} posters, for {shares}: {result.states} states")


SLEEPS: dict[str, tuple[Op, ...]] = {
    "no fence": ("which", "asleep", "look"),
    "looks first": ("look", "which", "asleep", "fence"),
    "fences first": ("fence", "which", "asleep", "look"),
}
POSTS: dict[str, tuple[Look, ...]] = {
    "looks which before it counts": ("add", "which", "count", "asleep"),
}


@pytest.mark.parametrize("mistake", SLEEPS)
def test_every_mistake_of_the_thread_loses_a_wake_up(mistake: str) -> None:
    result = explore(Notes(2, (1, 2), sleep=SLEEPS[mistake]))
    assert "LOST WAKE-UP" in result.trace[-1]


@pytest.mark.parametrize("mistake", POSTS)
def test_every_mistake_of_a_poster_loses_a_wake_up(mistake: str) -> None:
    result = explore(Notes(2, (1, 2), post=POSTS[mistake]))
    assert "LOST WAKE-UP" in result.trace[-1]


def test_who_sleeps_before_it_says_for_what_loses_a_wake_up() -> None:
    """A poster that finds it asleep, but for an older note, doesn't wake it."""
    late: tuple[Op, ...] = ("asleep", "fence", "look", "which")
    result = explore(Notes(2, (1, 2), sleep=late))
    assert "LOST WAKE-UP" in result.trace[-1]
