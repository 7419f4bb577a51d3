"""The arena's page allocator."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowbell.driver.memory import HUGE, PAGE, Arena, Buffer


def test_buffers_are_pages_of_the_mapping() -> None:
    arena = Arena(1)
    assert arena.size == HUGE
    buffer = arena.allocate(100)
    assert (buffer.size, buffer.iova % PAGE) == (PAGE, 0)
    buffer.view[:3] = b"abc"
    assert bytes(arena.view[buffer.offset : buffer.offset + 3]) == b"abc"
    assert buffer.iova - arena.iova == buffer.address - arena.address == buffer.offset
    buffer.free()
    arena.close()


def test_alignment() -> None:
    arena = Arena(HUGE)
    arena.allocate(PAGE)
    assert arena.allocate(PAGE, align=1 << 16).iova % (1 << 16) == 0


def test_memory_comes_zeroed_again() -> None:
    arena = Arena(HUGE)
    buffer = arena.allocate(PAGE)
    buffer.view[:] = b"\xff" * PAGE
    buffer.free()
    again = arena.allocate(PAGE)
    assert bytes(again.view) == bytes(PAGE)
    again.free()
    assert bytes(arena.allocate(PAGE, fill=7).view) == b"\x07" * PAGE


def test_exhaustion_is_an_error() -> None:
    arena = Arena(HUGE)
    arena.allocate(HUGE)
    with pytest.raises(MemoryError):
        arena.allocate(1)


def test_close_with_a_buffer_in_use_is_refused() -> None:
    arena = Arena(HUGE)
    view = memoryview(arena.allocate(PAGE).view)
    with pytest.raises(RuntimeError, match="in use"):
        arena.close()
    view.release()


@given(st.lists(st.tuples(st.integers(1, 40 * PAGE), st.booleans()), max_size=60))
def test_nothing_overlaps_and_all_comes_back(steps: list[tuple[int, bool]]) -> None:
    arena = Arena(HUGE)
    live: list[Buffer] = []
    for size, release in steps:
        if release and live:
            live.pop(size % len(live)).free()
            continue
        try:
            live.append(arena.allocate(size, fill=None))
        except MemoryError:
            continue
        spans = sorted((buffer.offset, buffer.offset + buffer.size) for buffer in live)
        assert all(one[1] <= two[0] for one, two in itertools.pairwise(spans))
    for buffer in live:
        buffer.free()
    assert arena.free_bytes == HUGE
    assert arena.allocate(HUGE).size == HUGE
