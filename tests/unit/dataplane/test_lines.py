"""Which fields of the data plane's structures share a cache line."""

import pytest

from shadowbell.dataplane.rules import cache_lines


@pytest.mark.parametrize("name", ["submission queue", "completion queue", "counters"])
def test_what_different_threads_change_lies_in_different_lines(name: str) -> None:
    read, own, others, size = cache_lines()[name]
    assert not read & own
    assert not own & others
    assert not others & read
    assert len(own) == len(others) == 1
    assert size == int(size)  # the next of an array begins with a line


def test_a_round_of_interrupts_touches_two_lines_of_its_own() -> None:
    """One for heads and signals, one for moderation: neither is touched at every completion."""
    completions, rounds, others, _ = cache_lines()["completion queue, once a round"]
    assert len(rounds) == 2
    assert not rounds & (completions | others)
