"""Which disks a power failure can leave: small logs by hand, random ones by definition."""

import itertools
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowbell.crash import CrashStates, Device, Recording, RecordingError

BLOCK = 512
WRITE, FLUSH, ZERO, DISCARD = 1, 2, 3, 4


class Log:
    """A recording made by hand; each block is filled with one byte."""

    def __init__(self, blocks: int = 4) -> None:
        self.bytes = struct.pack("<8sIIQ8x", b"SBRECORD", 1, BLOCK, blocks * BLOCK)
        self.entries = 0
        self.begun: dict[int, tuple[int, int, int]] = {}

    def _entry(
        self, number: int, kind: int, block: int, blocks: int, flags: int, result: int
    ) -> None:
        self.bytes += struct.pack(
            "<QQQQBBHi", self.entries, number, block * BLOCK, blocks * BLOCK, kind, flags, 0, result
        )
        self.entries += 1

    def begin(
        self, kind: int, block: int = 0, data: str = "", *, fua: bool = False, blocks: int = 0
    ) -> int:
        number = len(self.begun)
        blocks = blocks or len(data)
        self.begun[number] = kind, block, blocks
        self._entry(number, kind, block, blocks, int(fua), 0)
        self.bytes += b"".join(each.encode() * BLOCK for each in data)
        return number

    def end(self, number: int, result: int = 0) -> None:
        kind, block, blocks = self.begun[number]
        self._entry(number, kind | 0x80, block, blocks, 0, result)

    def write(self, block: int, data: str, *, fua: bool = False) -> None:
        self.end(self.begin(WRITE, block, data, fua=fua))

    def flush(self) -> None:
        self.end(self.begin(FLUSH))

    def read(self) -> Recording:
        return Recording.read(self.bytes)

    def disks(
        self, moment: int | None = None, granularity: str = "command", device: Device = "honest"
    ) -> set[str]:
        """All disks a failure at `moment` can leave, a letter a block, "." for zeros."""
        recording = self.read()
        states = CrashStates(recording, granularity=granularity, device=device)  # type: ignore[arg-type]
        moment = recording.moments if moment is None else moment
        count = states.count(moment)
        return {letters(bytes(state.contents())) for state in states.at(moment, count)}


def letters(disk: bytes) -> str:
    blocks = [disk[at : at + BLOCK] for at in range(0, len(disk), BLOCK)]
    assert all(block == block[:1] * BLOCK for block in blocks)
    return "".join(chr(block[0]) if block[0] else "." for block in blocks)


def test_what_is_not_flushed_may_be_lost() -> None:
    log = Log()
    log.write(0, "a")
    log.write(1, "b")
    assert log.disks() == {"....", "a...", ".b..", "ab.."}
    log.flush()
    assert log.disks() == {"ab.."}


def test_a_flush_covers_what_completed_before_it_began() -> None:
    log = Log()
    log.write(0, "a")
    late = log.begin(WRITE, 1, "b")
    flush = log.begin(FLUSH)
    log.end(late)
    assert log.disks() == {"....", "a...", ".b..", "ab.."}, "the flush isn't over"
    log.end(flush)
    assert log.disks() == {"a...", "ab.."}


def test_a_failed_flush_covers_nothing() -> None:
    log = Log()
    log.write(0, "a")
    log.end(log.begin(FLUSH), result=-5)
    assert log.disks() == {"....", "a..."}


def test_a_failed_write_may_have_happened() -> None:
    log = Log()
    log.end(log.begin(WRITE, 0, "a"), result=-5)
    log.flush()
    assert log.disks() == {"....", "a..."}


def test_fua_is_durable_when_it_completes_and_replaces_what_was_before() -> None:
    log = Log()
    log.write(0, "a")
    forced = log.begin(WRITE, 0, "b", fua=True)
    assert log.disks() == {"....", "a...", "b..."}
    log.end(forced)
    assert log.disks() == {"b..."}
    log.write(0, "c")
    assert log.disks() == {"b...", "c..."}


def test_changes_at_the_same_time_may_have_happened_in_either_order() -> None:
    log = Log()
    first, second = log.begin(WRITE, 0, "aa"), log.begin(WRITE, 1, "bb")
    log.end(second)
    log.end(first)
    log.flush()
    assert log.disks(granularity="block") == {"aab.", "abb."}


def test_a_command_is_torn_between_blocks_only_when_asked() -> None:
    log = Log()
    log.write(0, "ab")
    assert log.disks() == {"....", "ab.."}
    assert log.disks(granularity="block") == {"....", "a...", ".b..", "ab.."}


def test_zeros_are_changes() -> None:
    log = Log()
    log.write(0, "abc", fua=True)
    log.end(log.begin(ZERO, 0, blocks=1))
    log.end(log.begin(DISCARD, 2, blocks=1))
    assert log.disks() == {"abc.", ".bc.", "ab..", ".b.."}
    log.flush()
    assert log.disks() == {".b.."}


@pytest.mark.parametrize("device", ["drops-flushes", "early-flushes"])
def test_a_device_that_lies_about_flushes_loses_what_it_confirmed(device: Device) -> None:
    log = Log()
    log.write(0, "a")
    log.flush()
    assert log.disks(device=device) == {"....", "a..."}
    log.flush()
    assert (log.disks(device=device) == {"a..."}) == (device == "early-flushes")


def test_a_device_that_ignores_fua_loses_the_write() -> None:
    log = Log()
    log.write(0, "a", fua=True)
    assert log.disks(device="ignores-fua") == {"....", "a..."}
    log.flush()
    assert log.disks(device="ignores-fua") == {"a..."}


def test_samples_are_the_same_for_the_same_seed() -> None:
    log = Log(64)
    for block in range(64):
        log.write(block, "x")

    def sample(seed: int) -> list[str]:
        states = CrashStates(log.read(), seed=seed).sample(50)
        return [letters(bytes(state.contents())) for state in states]

    assert sample(1) == sample(1) != sample(2)
    assert 30 <= len(sample(1)) <= 50
    at_the_end = list(CrashStates(log.read()).at(128, 5))
    assert [state.lost for state in at_the_end[:2]] == [64, 0]


def test_a_log_cut_short_ends_before_the_cut() -> None:
    log = Log()
    log.write(0, "ab")
    whole = log.read()
    for length in range(32, len(log.bytes)):
        cut = Recording.read(log.bytes[:length])
        assert cut.times == whole.times[: len(cut.times)]
    with pytest.raises(RecordingError, match="too short"):
        Recording.read(log.bytes[:31])
    with pytest.raises(RecordingError, match="version"):
        Recording.read(b"SBRECORX" + log.bytes[8:])


Step = tuple[str, int, int, bool]
steps = st.lists(
    st.tuples(
        st.sampled_from(["write", "flush", "end"]),
        st.integers(0, 2),
        st.integers(1, 2),
        st.booleans(),
    ),
    max_size=9,
)


def play(steps: list[Step]) -> Log:
    log = Log(4)
    running: list[int] = []
    for number, (what, block, length, fua) in enumerate(steps):
        if what == "write":
            running.append(log.begin(WRITE, block, chr(97 + number) * length, fua=fua))
        elif what == "flush":
            running.append(log.begin(FLUSH))
        elif running:
            log.end(running.pop(block % len(running)))
    return log


def possible(log: Log, moment: int) -> Iterator[set[str]]:
    """What each block can hold, straight from the definition: a write w is gone for good when there
    is a durable one that began after w had completed."""
    recording = log.read()
    flushes = [f for f in recording.flushes if f.ended is not None and f.ended < moment]
    changes = [c for c in recording.changes if c.begun < moment]

    def ended(change: object, by: int) -> bool:
        when = change.ended  # type: ignore[attr-defined]
        return when is not None and when < by

    for block in range(4):
        mine = [c for c in changes if c.offset <= block * BLOCK < c.offset + c.length]
        durable = [
            c
            for c in mine
            if ended(c, moment) and (c.fua or any(ended(c, f.begun) for f in flushes))
        ]
        left = [c for c in mine if not any(ended(c, d.begun) for d in durable)]
        found = {chr(recording.data(c, block * BLOCK, 1)[0]) for c in left}
        yield found if durable else found | {"."}


@given(steps)
def test_the_states_are_those_of_the_definition(steps: list[Step]) -> None:
    log = play(steps)
    for moment in range(log.entries + 1):
        each = list(possible(log, moment))
        expected = {"".join(disk) for disk in itertools.product(*each)}
        assert log.disks(moment, granularity="block") == expected
        assert log.disks(moment) <= expected
