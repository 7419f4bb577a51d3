"""The compiled rules at every depth, and step by step beside the model."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from submission import Compare, State, Submission, inclusive, linux

from shadowbell.dataplane.rules import Head, Ring, behind, distance
from shadowbell.driver.hostqueue import shadow_need_event
from shadowbell.nvme.doorbells import must_ring

depths = st.one_of(st.integers(2, 8), st.integers(2, 65535), st.sampled_from([4096, 65535]))


def between(start: int, index: int, end: int, entries: int) -> bool:
    """Whether index lies in [start, end) on the ring."""
    return (index - start) % entries < (end - start) % entries


@st.composite
def updates(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """(entries, old, new, an EventIdx)."""
    entries = draw(depths)
    old = draw(st.integers(0, entries - 1))
    new = (old + draw(st.integers(1, entries - 1))) % entries
    near = st.sampled_from([old, new]).map(lambda place: (place + 1) % entries)
    event = draw(st.one_of(st.integers(0, entries - 1), st.sampled_from([old, new]), near))
    return entries, old, new, event


@given(updates())
def test_the_comparisons_are_exact_on_the_ring(update: tuple[int, int, int, int]) -> None:
    """Rung exactly when EventIdx is in the update, wrapped or not; inclusive: also at its end."""
    entries, old, new, event = update
    inside = between(old, event, new, entries)
    assert linux(event, new, old) == inside
    assert shadow_need_event(event, new, old) == inside
    assert must_ring(event, new, old) == inside
    assert inclusive(event, new, old) == (inside or event == new)


@given(depths, st.data())
def test_distance_and_behind(entries: int, data: st.DataObject) -> None:
    start, end = (data.draw(st.integers(0, entries - 1)) for _ in range(2))
    assert (start + distance(start, end, entries)) % entries == end
    assert (behind(start, entries) + 1) % entries == start
    assert distance(start, end, entries) < entries


@given(depths, st.data())
def test_what_one_eventidx_costs_a_driver_that_fills_the_ring(
    entries: int, data: st.DataObject
) -> None:
    """From empty to full, nobody looking: what the arithmetic forces, and no more.

    Right behind the head, EventIdx is never reached by Linux' form, and by the inclusive form once,
    by the update that fills the ring. No EventIdx does better there: [old, new] of each update
    together cover the whole ring.
    """
    head = data.draw(st.integers(0, entries - 1))
    steps = data.draw(st.lists(st.integers(1, entries - 1), min_size=1, max_size=20))
    ring = Ring(entries)
    ring.tail = head
    ring.consume(head)
    ring.wake()
    assert ring.eventidx == (head - 1) % entries
    any_event = data.draw(st.integers(0, entries - 1))
    place, left = head, entries - 1
    rings: dict[str, int] = {"linux": 0, "inclusive": 0, "any": 0}
    while left:
        step = min(steps.pop() if steps else left, left)
        new = (place + step) % entries
        rings["linux"] += linux(ring.eventidx, new, place)
        rings["inclusive"] += inclusive(ring.eventidx, new, place)
        rings["any"] += inclusive(any_event, new, place)
        place, left = new, left - step
    assert (rings["linux"], rings["inclusive"]) == (0, 1)
    assert rings["any"] >= 1


@given(depths, st.data())
def test_armed_the_next_update_rings_whatever_its_size(entries: int, data: st.DataObject) -> None:
    head = data.draw(st.integers(0, entries - 1))
    new = (head + data.draw(st.integers(1, entries - 1))) % entries
    ring = Ring(entries)
    ring.tail = head
    ring.consume(head)
    assert ring.arm()
    assert ring.eventidx == head
    assert linux(ring.eventidx, new, head)
    assert inclusive(ring.eventidx, new, head)
    ring.tail = new
    assert not ring.arm()
    ring.wake()
    assert not linux(ring.eventidx, new, head)


@given(depths, st.lists(st.integers(1, 65534), min_size=1, max_size=60))
def test_a_busy_ring_is_stored_to_seldom_and_rung_by_no_short_update(
    entries: int, steps: list[int]
) -> None:
    """Nobody's store is late here: a driver less than half a lap ahead never rings."""
    ring = Ring(entries)
    stores, place, moved = ring.stores, 0, 0
    for step in steps:
        count = step % max(1, (entries - 1) // 2) + 1
        new = (place + count) % entries
        if 2 * count < entries - 1:
            assert not linux(ring.eventidx, new, place)
        ring.tail = new
        ring.consume(new)
        place, moved = new, moved + count
    assert ring.stores - stores <= moved // max(1, (entries - 1) // 4) + 1


@given(depths, st.data())
def test_a_completion_queues_head(entries: int, data: st.DataObject) -> None:
    head = data.draw(st.integers(0, entries - 1))
    posted = data.draw(st.integers(1, entries - 1))
    new = (head + posted) % entries
    queue = Head(entries)
    queue.ignore(head)
    assert not linux(queue.eventidx, new, head)
    assert inclusive(queue.eventidx, new, head) == (posted == entries - 1)
    queue.arm(head)
    assert linux(queue.eventidx, new, head)
    assert inclusive(queue.eventidx, new, head)


@pytest.mark.parametrize("compare", [linux, inclusive], ids=["linux", "inclusive"])
@pytest.mark.parametrize("entries", [2, 3, 4, 5, 8, 32])
def test_model_and_compiled_code_go_the_same_way(compare: Compare, entries: int) -> None:
    chance = random.Random(entries)
    depth = chance.randint(1, entries - 1)
    model = Submission(entries, depth, depth, compare)
    state, ring = model.initial(), Ring(entries)
    seen = set()
    for _ in range(4000):
        _, after = chance.choice(list(model.moves(state)))
        ring.tail = after.shadow % entries
        follow(ring, state, after, entries)
        seen.add((state.where, after.where))
        if after.where in ("poll", "asleep"):
            assert (ring.head, ring.eventidx) == (after.head % entries, after.last_event % entries)
        state = model.lap_back(after)
    assert seen >= {
        ("poll", "consumed"), ("consumed", "poll"), ("arm", "asleep"), ("asleep", "poll")
    }  # fmt: skip


def follow(ring: Ring, before: State, after: State, entries: int) -> None:
    """Do with the compiled ring what the model's device did."""
    match before.where, after.where:
        case "consumed", "poll":
            ring.consume(before.looked % entries)
        case "asleep", "poll":
            ring.wake()
        case "arm", "poll" | "asleep":
            assert ring.arm() == (after.where == "asleep")
