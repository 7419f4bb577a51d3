"""Register writes that arrive late, beside a slot in memory that the host may store to."""

import pytest
from explorer import explore
from registers import Registers

from shadowbell.dataplane.rules import Slot

ENTRIES = pytest.mark.parametrize("entries", [2, 3, 4, 5])


@ENTRIES
def test_the_slot_never_goes_back(entries: int) -> None:
    result = explore(Registers(entries, shadows=True, one_thread=True))
    assert result.holds, result.story()


@ENTRIES
@pytest.mark.parametrize("marks", [True, False])
def test_no_register_of_a_host_without_shadow_is_lost(entries: int, marks: bool) -> None:
    result = explore(Registers(entries, shadows=False, marks=marks, one_thread=True))
    assert result.holds, result.story()


@ENTRIES
def test_the_reader_must_note_who_stores(entries: int) -> None:
    """Else a whole lap hides the host's stores, and the oldest register write is believed."""
    result = explore(Registers(entries, shadows=True, marks=False, one_thread=True))
    assert "WENT BACK" in result.trace[-1]
    print(result.story())


@pytest.mark.parametrize(("shadows", "breaks"), [(True, "WENT BACK"), (False, "LOST")])
def test_one_thread_must_take_and_read(shadows: bool, breaks: str) -> None:
    result = explore(Registers(4, shadows=shadows))
    assert breaks in result.trace[-1]
    print(result.story())


def test_who_stores_must_not_be_forgotten() -> None:
    """Else a register write from before is believed again, and newer stores are undone."""
    result = explore(Registers(4, shadows=True, one_thread=True, forgets=True))
    assert "WENT BACK" in result.trace[-1]
    print(result.story())


def test_compiled_rule_for_each_host() -> None:
    quiet = Slot(shadowed=True)
    for value in (1, 2, 3, 0, 1):
        quiet.take(value)
        assert quiet.read() == value
    assert not quiet.host_stores
    storing = Slot(shadowed=True)
    storing.host_store(3)
    storing.take(1)
    assert storing.host_stores
    assert storing.read() == 3
    trapped = Slot(shadowed=False)
    trapped.take(7)
    assert trapped.read() == 7
