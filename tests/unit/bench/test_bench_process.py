"""CPU time, placement, and the ping's two processes."""

import os
import time

import pytest

from shadowbell.bench import process
from shadowbell.bench.pings import _partner, _ping, mean_us
from shadowbell.errors import UserError


def test_cpu_time_is_the_process_own() -> None:
    before, own = process.cpu_seconds(os.getpid()), time.process_time()
    while time.process_time() - own < 0.02:
        pass
    assert process.cpu_seconds(os.getpid()) - before == pytest.approx(0.02, abs=0.01)


def test_a_processor_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="can't use processor 4095"):
        process.pin(0, 4095)


def test_machine_and_process_can_be_described() -> None:
    assert process.machine()["cpus"] == os.cpu_count()
    assert process.resident_bytes(os.getpid()) > 1 << 20
    assert process.sleeps(os.getpid()) > 0
    assert process.Disturbance().others() >= 0


def test_a_competitor_takes_its_processor() -> None:
    cpu = min(os.sched_getaffinity(0))
    with process.Competitor(cpu) as busy:
        assert os.sched_getaffinity(busy.pid) == {cpu}
        before = process.cpu_seconds(busy.pid)
        while process.cpu_seconds(busy.pid) - before < 0.01:
            time.sleep(0.001)


def test_a_ping_comes_back() -> None:
    with _partner(None) as (connection, event):
        stats = _ping(connection, event, 0.05)
    assert stats.ios > 0
    assert sum(stats.histogram.values()) == stats.ios
    assert 0 < stats.percentile(1) <= mean_us(stats) * 1.1 <= 1e6
