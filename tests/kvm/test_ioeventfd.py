"""ioeventfds on real KVM: the value is lost, unless it lies in the shadow."""

from io import StringIO

import pytest
from rich.console import Console

from shadowbell.lab import run
from shadowbell.lab.driven import WAYS, Way, drive
from shadowbell.lab.ioeventfd import lose_the_value, match_values
from shadowbell.lab.kvm import Exit, KvmError, Machine, unavailable
from shadowbell.lab.programs import CODE, write_values

MISSING = unavailable()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")

REGISTER, SLEEPS, SLEEPS_EVENTFD, POLLS_EVENTFD = WAYS


def test_a_write_without_an_ioeventfd_leaves_the_kernel_with_its_value() -> None:
    seen = []
    with Machine() as machine:
        machine.map_page(CODE, write_values(0xC0001008, [1, 2, 3]))
        machine.run(CODE, lambda address, value: seen.append((address, value)))
        assert machine.exits == {Exit.MMIO: 3, Exit.HLT: 1}
    assert seen == [(0xC0001008, value) for value in (1, 2, 3)]


@pytest.mark.parametrize("tails", [[1, 2, 3], [3, 2, 1], [7, 7, 7]])
def test_an_ioeventfd_tells_how_often_and_not_what(tails: list[int]) -> None:
    lost = lose_the_value(tails)
    assert (lost.count, lost.exits) == (3, 0)


def test_datamatch_takes_a_descriptor_for_each_value() -> None:
    matched = match_values(64, [1, 63, 1, 64, 65])
    assert matched.counts == {1: 2, 63: 1}
    assert matched.exited == [64, 65]


def test_code_that_goes_astray_is_an_error() -> None:
    with Machine() as machine:
        machine.map_page(CODE, bytes.fromhex("0f0b"))  # ud2, and nobody handles it
        with pytest.raises(KvmError, match="SHUTDOWN"):
            machine.run(CODE)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_every_command_completes(way: Way) -> None:
    commands = 500
    driven = drive(way, commands)
    assert driven.completed == commands
    if way == REGISTER:  # a tail and a head for each
        assert (driven.rings, driven.exits, driven.wakeups) == (2 * commands, 2 * commands, 0)
    elif way == SLEEPS:
        assert (driven.exits, driven.wakeups) == (driven.rings, 0)
        assert driven.rings > commands / 2
    else:
        assert driven.exits == 0
        assert bool(driven.rings) == bool(driven.wakeups)
        assert driven.wakeups <= driven.rings  # two writes may be one wake-up
        asleep = way == SLEEPS_EVENTFD
        assert driven.rings > commands / 2 if asleep else driven.rings < commands / 2


def test_the_lab_says_so() -> None:
    out = StringIO()
    console = Console(width=100, file=out)
    assert run(console) == 0
    text = out.getvalue()
    assert "The eventfd says 3" in text
