"""What a process and the machine cost: CPU time, sleeps, memory, and who else was busy."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from shadowbell.errors import UserError
from shadowbell.guest.child import Child

_CPUCLOCK_SCHED: Final = 2  # linux/posix-timers.h: a process's clock is ~pid << 3 | kind


def cpu_seconds(pid: int) -> float:
    """CPU seconds of all threads of a process, to the nanosecond; OSError when it is gone.

    ``/proc/PID/stat`` counts in ticks of 10 ms: too coarse for an idle process.
    """
    return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)


def sleeps(pid: int) -> int:
    """How often the threads of a process gave up the processor by themselves."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches:"):
                    total += int(line.split()[1])
    return total


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def pinned(cpu: int | None) -> Iterator[None]:
    """Keep this thread, and those it starts, on one processor meanwhile. Raises UserError."""
    before = os.sched_getaffinity(0)
    if cpu is not None:
        pin(0, cpu)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def pin(pid: int, cpu: int) -> None:
    """Keep every thread of a process (0: this thread, and those it starts) on one processor.

    Raises UserError when there is no such processor, or it isn't ours to use.
    """
    tasks = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()] if pid else [0]
    try:
        for task in tasks:
            with suppress(ProcessLookupError):
                os.sched_setaffinity(task, {cpu})
    except OSError as error:
        allowed = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        raise UserError(
            f"can't use processor {cpu} ({error.strerror}): choose from {allowed}"
        ) from error


class Competitor(Child):
    """A process that does nothing but take one processor, as another tenant would."""

    def __init__(self, cpu: int) -> None:
        super().__init__("busy")
        self._cpu = cpu

    def start(self) -> None:
        self._launch(["sh", "-c", "while :; do :; done"])
        pin(self.pid, self._cpu)


def _busy_seconds() -> float:
    # user nice system idle iowait irq softirq steal: all but idle and iowait
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


class Disturbance:
    """How busy the machine's other processes were; 1.0 is one processor's worth.

    ``pids``: the processes that belong to the measurement, this one aside.
    """

    def __init__(self, pids: Sequence[int] = ()) -> None:
        self._pids = [os.getpid(), *pids]
        self._begin = time.monotonic()
        self._busy = _busy_seconds()
        self._ours = sum(map(cpu_seconds, self._pids))

    def others(self) -> float:
        """From the beginning until now; 10 ms ticks limit it."""
        elapsed = time.monotonic() - self._begin
        ours = sum(map(cpu_seconds, self._pids)) - self._ours
        return max(0.0, _busy_seconds() - self._busy - ours) / elapsed if elapsed else 0.0


def machine() -> dict[str, Any]:
    """The machine, for reports."""
    model = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "load_average": list(os.getloadavg()),
    }
