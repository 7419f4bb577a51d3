"""How a thread waits for work, in simulated time: what it costs, and how late it is."""

import itertools
import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowbell.dataplane.rules import Pace

US = 1000
MS = 1_000_000
LOOK = 200  # ns of a look that finds nothing
WAKE = 20 * US  # from a timer or a doorbell to the next look, and what it costs us
WINDOW = 256 * US  # a quarter of the longest wait
LONGEST = 4
SLICE = 4 * MS


class Simulated:
    """A thread that is given work after the gaps of a list, each from the end of the last work.

    ``contended``: another process always wants the processor: after ``SLICE`` of ours in a row
    it has it for as long. ``stolen``: the hypervisor takes it instead, whatever we do. ``counted``:
    the kernel tells which of the two it was. ``together``: how many commands share an interrupt, of
    a host that has interrupts.
    """

    def __init__(
        self,
        gaps: Iterable[int],
        window: int,
        *,
        settle: int = 200,
        contended: bool = False,
        stolen: bool = False,
        counted: bool = False,
        together: int | None = None,
    ) -> None:
        self.pace = Pace(LONGEST * window)
        self.contended = contended
        self.stolen = stolen
        self.counted = counted
        self.next_steal = SLICE
        self.waiting = 0
        self.slice = 0
        self.now = self.cpu = self.late = self.rings = self.naps = self.lost = 0
        self.time = self.work = 0
        for number, gap in enumerate(gaps):
            if number == settle:
                self.cpu = self.late = self.rings = self.naps = self.work = 0
                self.time = self.now
            self.wait_for(self.now + gap)
            self.pace.worked(self.now)
            if together is not None:
                self.pace.told(together)
            self.work += 1
        self.time = self.now - self.time

    @property
    def waited(self) -> int | None:
        return self.waiting if self.counted else None

    def wait_for(self, due: int) -> None:
        while True:
            self.now += LOOK
            self.cpu += LOOK
            self.slice += LOOK
            if self.contended and self.slice > SLICE:
                self.now += SLICE
                self.waiting += SLICE
                self.slice = 0
                self.lost += 1
            if self.stolen and self.now > self.next_steal:
                self.now += SLICE
                self.next_steal = self.now + 10 * SLICE
                self.lost += 1
            self.pace.looked(self.now, self.waited)
            if self.now >= due:
                break
            what, nap = self.pace.rest(self.now, self.waited)
            if what == "poll":
                continue
            self.cpu += WAKE
            self.waiting += WAKE // 2
            self.slice = 0
            if what == "nap":
                self.naps += 1
                self.pace.napped(nap, nap + WAKE)
                self.now += nap + WAKE
            else:
                self.rings += 1
                self.now = max(due, self.now) + WAKE
        self.late += self.now - due

    @property
    def load(self) -> float:
        """Processor time, 1 being all of it."""
        return self.cpu / self.time


def polls(thread: Simulated, after: int = 40 * US) -> bool:
    """Does it poll when nothing came for so long?"""
    thread.now += after
    thread.pace.looked(thread.now, thread.waited)
    return thread.pace.rest(thread.now, thread.waited)[0] == "poll"


def lose_processor(thread: Simulated) -> None:
    """To another process for a millisecond, while the thread polls; then it finds work."""
    assert polls(thread, LOOK)
    thread.now += MS
    thread.waiting += MS
    thread.pace.looked(thread.now, thread.waited)
    thread.pace.worked(thread.now)


def test_short_gaps_are_polled_through() -> None:
    """Nobody is rung, nothing waits, under a load whose gaps fit into the window."""
    chance = random.Random(1)
    thread = Simulated((chance.randrange(1, 60 * US) for _ in range(2000)), WINDOW)
    assert (thread.rings, thread.naps) == (0, 0)
    assert thread.late <= thread.work * LOOK


@pytest.mark.parametrize("gap", [100 * US, 200 * US, 500 * US, 900 * US])
def test_steady_gaps_cost_a_nap_and_a_little_polling(gap: int) -> None:
    """A load of evenly spaced commands: no rings, no lateness, far from a whole processor."""
    thread = Simulated(itertools.repeat(gap, 1000), WINDOW)
    assert thread.rings == 0
    assert thread.naps <= 1.1 * thread.work
    assert thread.late / thread.work < US
    assert thread.load < (WAKE + 20 * US) / gap


def test_a_guest_with_a_gap_of_a_millisecond_now_and_then_is_polled_through() -> None:
    """As an emulated guest has them: such a gap says nothing about the next ones."""
    chance = random.Random(7)
    spans = [(60, 100)] * 85 + [(100, 250)] * 10 + [(250, 900)] * 3 + [(900, 5000)] * 2
    gaps = [chance.randrange(*chance.choice(spans)) * US for _ in range(5000)]
    thread = Simulated(gaps, WINDOW)
    assert thread.rings < 0.03 * thread.work
    assert thread.naps < 0.15 * thread.work
    assert thread.late / thread.work < 1.5 * US
    assert thread.load < 0.8


def test_one_long_gap_does_not_end_polling() -> None:
    thread = Simulated(itertools.repeat(75 * US, 500), WINDOW)
    thread.wait_for(thread.now + 20 * MS)
    thread.pace.worked(thread.now)
    assert polls(thread, 200 * US)


@pytest.mark.parametrize("gap", [MS, 5 * MS])
def test_waits_beyond_the_window_take_an_eighth_of_the_time(gap: int) -> None:
    """Bursts of commands, and much longer gaps between them."""
    gaps = [*[5 * US] * 7, gap] * 500
    thread = Simulated(gaps, WINDOW)
    assert thread.load < (WINDOW + 100 * US) / gap + 1 / 8


def test_naps_that_end_too_late_become_rare() -> None:
    """Every twentieth gap is half as long as the others, and average and deviation hide it."""
    chance = random.Random(8)
    gaps = [chance.choice([100] + [200] * 19) * US for _ in range(5000)]
    thread = Simulated(gaps, WINDOW)
    assert thread.late / thread.work < 2 * US
    assert thread.naps > 0.5 * thread.work
    cautious = thread.cpu / thread.work
    steady = Simulated(itertools.chain(gaps, itertools.repeat(200 * US, 1000)), WINDOW, settle=5500)
    assert steady.cpu / steady.work < 0.7 * cautious


def test_gaps_of_no_pattern_longer_than_the_window_are_napped_through() -> None:
    chance = random.Random(2)
    gaps = [int(chance.expovariate(1 / (250 * US))) for _ in range(3000)]
    thread = Simulated(gaps, 32 * US)
    assert thread.rings < 0.2 * thread.work
    assert thread.late / thread.work < 100 * US
    assert thread.load < 0.5


def test_gaps_of_no_pattern_near_a_millisecond_cost_little() -> None:
    """Looking again and again would cost more than being rung."""
    chance = random.Random(4)
    thread = Simulated([int(chance.expovariate(1 / MS)) for _ in range(3000)], WINDOW)
    assert thread.load < 0.08


def test_long_gaps_are_slept_through() -> None:
    """A command every 5 ms: one ring each, and next to no processor."""
    thread = Simulated(itertools.repeat(5 * MS, 500), WINDOW)
    assert thread.rings == thread.work
    assert thread.load < 0.01


def test_without_a_window_nothing_is_polled() -> None:
    thread = Simulated(itertools.repeat(10 * US, 1000), 0)
    assert thread.rings == thread.work


@pytest.mark.parametrize("gap", [50 * US, 100 * US])
def test_beside_a_busy_process_it_keeps_off_the_processor(gap: int) -> None:
    """Who polls loses the processor for milliseconds; who sleeps gets it back at once."""
    chance = random.Random(3)
    gaps = [int(gap * chance.uniform(0.5, 1.5)) for _ in range(8000)]
    thread = Simulated(gaps, WINDOW, contended=True)
    assert thread.late / thread.work < 100 * US
    polling = Simulated(gaps, WINDOW)
    assert polling.late < thread.late / 2  # alone, it polls


def test_beside_a_busy_process_a_host_that_waits_for_each_command_rings() -> None:
    """Naps are late and take processor time that is wanted; commands by the dozen share them."""
    chance = random.Random(9)
    gaps = [chance.randrange(30, 120) * US for _ in range(8000)]
    waiting = Simulated(gaps, WINDOW, contended=True, counted=True, together=1)
    assert waiting.rings > 0.9 * waiting.work
    assert waiting.late / waiting.work < 1.5 * WAKE
    many = Simulated(gaps, WINDOW, contended=True, counted=True, together=12)
    assert many.naps > 0.9 * many.work
    assert many.rings < 0.1 * many.work
    alone = Simulated(gaps, WINDOW, counted=True, together=1)
    assert alone.rings == 0


def test_a_processor_that_is_wanted_all_the_time_is_lost_ever_more_rarely() -> None:
    """Polling is tried again after 0.1 s, 0.2 s, and so on to 3.2 s, and never given up."""
    chance = random.Random(5)
    gaps = [int(100 * US * chance.uniform(0.5, 1.5)) for _ in range(200_000)]
    thread = Simulated(gaps, WINDOW, contended=True)
    assert 7 <= thread.lost <= 14
    thread.contended = False
    start = thread.now
    while not polls(thread):
        thread.wait_for(thread.now + 100 * US)
        thread.pace.worked(thread.now)
        assert thread.now - start < 3300 * MS


def test_a_processor_that_was_lost_once_is_polled_on() -> None:
    """Everybody's is wanted now and then. Twice in short succession is a busy process."""
    thread = Simulated(itertools.repeat(50 * US, 500), WINDOW)
    lose_processor(thread)
    assert polls(thread)
    for _ in range(2000):
        thread.wait_for(thread.now + 50 * US)
        thread.pace.worked(thread.now)
    lose_processor(thread)
    assert polls(thread)
    lose_processor(thread)
    assert not polls(thread)


def test_a_processor_that_was_lost_twice_is_polled_on_again_soon() -> None:
    """What happened a second ago says nothing about now."""
    thread = Simulated(itertools.repeat(50 * US, 500), WINDOW)
    for _ in range(10):
        lose_processor(thread)
        lose_processor(thread)
        lost = thread.now
        while not polls(thread):
            thread.wait_for(thread.now + 50 * US)
            thread.pace.worked(thread.now)
        assert thread.now - lost < 110 * MS
        for _ in range(20_000):
            thread.wait_for(thread.now + 50 * US)
            thread.pace.worked(thread.now)


def test_what_the_hypervisor_takes_does_not_end_polling() -> None:
    """Nobody else wants the processor: sleeping would only add to the lateness."""
    chance = random.Random(6)
    gaps = [chance.randrange(1, 60 * US) for _ in range(20_000)]
    thread = Simulated(gaps, WINDOW, stolen=True, counted=True)
    assert thread.lost > 10
    assert thread.rings + thread.naps < 0.01 * thread.work
    unknown = Simulated(gaps, WINDOW, stolen=True)
    assert unknown.naps + unknown.rings > 0.5 * unknown.work


def test_a_busy_process_is_told_from_a_hypervisor() -> None:
    """The kernel's count grows by what a busy process took, and the rules are the same."""
    chance = random.Random(3)
    gaps = [chance.randrange(25 * US, 75 * US) for _ in range(8000)]
    told = Simulated(gaps, WINDOW, contended=True, counted=True)
    guessed = Simulated(gaps, WINDOW, contended=True)
    assert (told.rings, told.naps, told.lost) == (guessed.rings, guessed.naps, guessed.lost)
    assert told.lost > 0


def test_waits_of_many_wake_ups_are_not_one_long_wait() -> None:
    """A load that is napped through, and then one that is polled through and stolen from, twice."""
    thread = Simulated(itertools.repeat(200 * US, 3000), WINDOW, counted=True)
    assert thread.waiting > 20 * MS
    for _ in range(2):
        napped = thread.waiting
        for gap in [200 * US] * 160 + [20 * US] * 60:
            thread.wait_for(thread.now + gap)
            thread.pace.worked(thread.now)
        assert thread.waiting - napped > MS
        assert polls(thread, LOOK)
        thread.now += MS
        thread.pace.looked(thread.now, thread.waited)
        thread.pace.worked(thread.now)
    assert polls(thread)


def test_long_work_is_neither_an_absence_nor_part_of_a_gap() -> None:
    """Copying for a millisecond, and the next commands come 20 us after that, each time."""
    pace, now = Pace(LONGEST * WINDOW), 0
    for number in range(200):
        pace.looked(now)
        pace.worked(now, now + MS)
        now += MS + LOOK
        assert pace.rest(now)[0] == "poll" or number < 50
        now += 20 * US
    assert pace.rest(now)[0] == "poll"


def test_short_gaps_are_polled_through_even_beside_a_busy_process() -> None:
    """Going to sleep would take longer than they do."""
    thread = Simulated(itertools.repeat(2 * US, 20000), WINDOW, contended=True)
    assert thread.rings + thread.naps < 0.01 * thread.work


@pytest.mark.parametrize("held", [False, True])
def test_a_late_nap_while_commands_are_held_is_no_preemption(held: bool) -> None:
    """A long time between two looks is one; what is held has the thread nap instead of looking."""
    thread = Simulated(itertools.repeat(50 * US, 500), WINDOW)
    pace, now = thread.pace, thread.now
    for _ in range(2):
        now += LOOK
        assert pace.rest(now, held=held) == (("nap", 100 * US) if held else ("poll", 0))
        now += 600 * US
        pace.looked(now)
        pace.worked(now)
    what, _ = pace.rest(now + 40 * US)
    assert (what == "poll") == held


def test_naps_come_back_after_a_moment_that_was_out_of_the_ordinary() -> None:
    thread = Simulated(itertools.repeat(200 * US, 500), WINDOW)
    thread.pace.napped(100 * US, 50 * MS)
    thread.naps = thread.work = 0
    for _ in range(3000):
        thread.wait_for(thread.now + 200 * US)
        thread.pace.worked(thread.now)
    assert thread.naps > 1000


@given(st.lists(st.integers(1, 20 * MS), max_size=60), st.sampled_from([0, US, 32 * US, WINDOW]))
def test_whatever_came_before_silence_ends_in_sleep(gaps: list[int], window: int) -> None:
    """At most some milliseconds after the last work no timer wakes the thread any more."""
    thread = Simulated(gaps, window)
    start = thread.now
    while True:
        what, nap = thread.pace.rest(thread.now)
        if what == "sleep":
            break
        assert nap <= MS
        thread.now += nap if what == "nap" else LOOK
    assert thread.now - start <= 6 * MS


@given(st.integers(0, 2**40), st.integers(0, 100 * MS))
def test_a_mapped_doorbell_is_looked_at_for_ever(start: int, idle: int) -> None:
    """Nobody can ring for it; the pause before the next look grows, to 8 ms."""
    pace = Pace(LONGEST * WINDOW)
    pace.worked(start)
    what, nap = pace.rest(start + idle, mapped=True)
    assert what == "poll" or (what == "nap" and nap <= 8 * MS)
