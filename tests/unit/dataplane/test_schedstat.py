"""What the kernel counts of a thread, as the IOThreads read it."""

import os
from pathlib import Path

import pytest

from shadowbell.dataplane import rules

STATISTICS = Path("/proc/thread-self/schedstat")


@pytest.mark.skipif(not STATISTICS.exists(), reason="a kernel without CONFIG_SCHED_INFO")
def test_the_two_times_are_the_kernels() -> None:
    fd = os.open(STATISTICS, os.O_RDONLY)
    try:
        before = [int(word) for word in STATISTICS.read_text().split()[:2]]
        read = rules.schedstat(fd)
        after = [int(word) for word in STATISTICS.read_text().split()[:2]]
    finally:
        os.close(fd)
    assert read is not None
    assert before[0] <= read[0] <= after[0]
    assert before[1] <= read[1] <= after[1]


@pytest.mark.parametrize("text", ["0 0 0\n", ""])
def test_a_kernel_that_counts_nothing_is_not_believed(text: str, tmp_path: Path) -> None:
    """Linux without schedstats and delay accounting says 0 0 0."""
    (tmp_path / "schedstat").write_text(text)
    fd = os.open(tmp_path / "schedstat", os.O_RDONLY)
    try:
        assert rules.schedstat(fd) is None
    finally:
        os.close(fd)
    assert rules.schedstat(-1) is None
