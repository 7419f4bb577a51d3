"""A host that sleeps on its vector is never left with completions, whatever is held back."""

from typing import Any

import pytest
from explorer import explore
from interrupts import Interrupts, verdict

from shadowbell.dataplane.rules import judge

DEPTHS = pytest.mark.parametrize("depth", [1, 2, 3, 4])
HOSTS = pytest.mark.parametrize(
    "host", [{}, {"lazy": True}, {"polls": True}], ids=["linux", "lazy head", "polls too"]
)


@DEPTHS
@HOSTS
@pytest.mark.parametrize("masks", [False, True], ids=["", "masked at times"])
@pytest.mark.parametrize("puts_off", [False, True], ids=["", "put off"])
def test_no_interrupt_is_lost(
    depth: int, host: dict[str, bool], masks: bool, puts_off: bool
) -> None:
    result = explore(Interrupts(depth, masks=masks, puts_off=puts_off, **host))
    assert result.holds, result.story()
    print(f"depth {depth}: {result.states} states")


@DEPTHS
@HOSTS
def test_no_interrupt_is_lost_when_they_are_coalesced(depth: int, host: dict[str, bool]) -> None:
    result = explore(Interrupts(depth, threshold=3, masks=True, **host))
    assert result.holds, result.story()


@DEPTHS
def test_while_polling_the_head_alone_tells(depth: int) -> None:
    """A host that stores its head whenever it has looked needs no deadline."""
    result = explore(Interrupts(depth, deadline=False, sleeps=False))
    assert result.holds, result.story()


@pytest.mark.parametrize(
    "mistake",
    [
        {"forgets": True},
        {"deadline": False},
        {"deadline": False, "sleeps": False, "lazy": True},
        {"deadline": False, "sleeps": False, "threshold": 2},
        {"deadline": False, "sleeps": False, "puts_off": True},
        {"signals_early": True},
        {"masks": True, "rechecks": False},
        {"drains_late": True},
    ],
    ids=lambda mistake: ", ".join(mistake),
)
def test_every_mistake_loses_one(mistake: dict[str, Any]) -> None:
    result = explore(Interrupts(3, **mistake))
    assert "LOST" in result.trace[-1]
    print(result.story())


def test_the_compiled_rule_is_the_model_s() -> None:
    for waiting in range(5):
        for unsignalled in range(1, 5):
            assert judge(waiting, unsignalled) == verdict(waiting, unsignalled)
