"""Loads on queues: what to run, and what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from shadowbell.driver import pointers
from shadowbell.driver.histogram import histogram_bucket, histogram_floor, tick_nanoseconds
from shadowbell.driver.host import Host
from shadowbell.driver.hostload import LoadLoop
from shadowbell.driver.memory import PAGE, Buffer
from shadowbell.driver.queue_pair import QueuePair
from shadowbell.driver.verifier import Verifier

Pattern = Literal["randread", "randwrite", "randrw", "read", "write"]


@dataclass(frozen=True, kw_only=True)
class LoadSpec:
    """What a load does. Sizes in bytes; ``write_percent`` is for ``randrw`` only.

    ``first`` and ``length`` (in blocks, None: to the end) bound the range. ``sleep`` waits for
    interrupts instead of polling, after ``spin`` seconds without a completion. ``rate``: I/Os to
    start a second, evenly spaced (0: as many as ``depth`` allows). ``watchdog`` (with ``sleep``):
    look into a completion queue once for each interrupt, as Linux' handler does, and never without
    one, and sometimes store the head only after new commands were submitted; completions that wait
    longer than so many seconds for their interrupt count as ``missed``.

    ``flush_every`` (0: never): after so many writes a queue's next command is a Flush (Base
    2.0, 7.1), as fio's is with ``fdatasync`` and io_uring. It takes a place of ``depth`` but isn't
    held up by ``rate``; it doesn't wait for the writes, which it covers as far as they are
    completed, and nothing waits for it. Where the load ends with that write, none follows.
    """

    pattern: Pattern = "randread"
    block_size: int = 4096
    depth: int = 1
    nsid: int = 1
    write_percent: float = 50.0
    first: int = 0
    length: int | None = None
    seed: int = 1
    sleep: bool = False
    spin: float = 0.0
    rate: float = 0.0
    flush_every: int = 0
    watchdog: float = 0.0

    @property
    def writes(self) -> int:
        """Writes in 65536 I/Os."""
        if self.pattern == "randrw":
            return round(self.write_percent / 100 * 65536)
        return 65536 if self.pattern in ("randwrite", "write") else 0


@dataclass
class LoadStats:
    """Counters of a load; add them up with ``merge``.

    ``seconds``: from the start to the last completion (the longest, when merged). ``registers``:
    posted doorbell writes, ``wakeups``: ioeventfd writes, ``stores``: stores to a mapped
    register, ``updates``: doorbells rung in any way. ``lost``: commands without a completion.
    ``flushes`` succeeded, and are no I/Os; their latencies are in ``flush_histogram``.
    """

    seconds: float = 0.0
    reads: int = 0
    writes: int = 0
    flushes: int = 0
    bytes: int = 0
    errors: int = 0
    first_error: int = 0
    mismatches: int = 0
    first_mismatch: int = -1
    violations: int = 0
    lost: int = 0
    broken: bool = False
    stalled: bool = False
    registers: int = 0
    wakeups: int = 0
    stores: int = 0
    updates: int = 0
    interrupts: int = 0
    sleeps: int = 0
    missed: int = 0
    histogram: dict[int, int] = field(default_factory=dict)
    flush_histogram: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, results: dict[str, Any], block_size: int) -> Self:
        """From what a load loop returned."""
        return cls(**results, bytes=(results["reads"] + results["writes"]) * block_size)

    @property
    def ios(self) -> int:
        """Reads and writes that succeeded."""
        return self.reads + self.writes

    @property
    def iops(self) -> float:
        """Successful I/Os per second."""
        return self.ios / self.seconds if self.seconds else 0.0

    @property
    def clean(self) -> bool:
        """Nothing went wrong: no error, mismatch, lost, missed or impossible completion."""
        wrong = self.errors or self.mismatches or self.violations or self.lost or self.missed
        return not wrong and not self.broken and not self.stalled

    def per_io(self, count: int) -> float:
        """``count`` divided by the I/Os."""
        return count / self.ios if self.ios else 0.0

    def percentile(self, percent: float) -> float:
        """Latency in microseconds that ``percent`` of the I/Os didn't exceed (1.6 % exact)."""
        return percentile_us(self.histogram, percent)

    def flush_percentile(self, percent: float) -> float:
        """As ``percentile``, of the Flushes."""
        return percentile_us(self.flush_histogram, percent)

    def merge(self, other: "LoadStats") -> None:
        """Add another queue's or thread's counters that ran at the same time."""
        self.seconds = max(self.seconds, other.seconds)
        self.first_error = self.first_error or other.first_error
        if self.first_mismatch < 0:
            self.first_mismatch = other.first_mismatch
        self.broken |= other.broken
        self.stalled |= other.stalled
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for mine, others in (
            (self.histogram, other.histogram),
            (self.flush_histogram, other.flush_histogram),
        ):
            for bucket, count in others.items():
                mine[bucket] = mine.get(bucket, 0) + count


_SUMS = (
    *("reads", "writes", "flushes", "bytes", "errors", "mismatches", "violations", "lost"),
    *("registers", "wakeups", "stores", "updates", "interrupts", "sleeps", "missed"),
)


def percentile_us(histogram: Mapping[int, int], percent: float) -> float:
    """Latency in microseconds that ``percent`` of the commands didn't exceed; 0 without any."""
    total = sum(histogram.values())
    if not total:
        return 0.0
    left = total * percent / 100
    for bucket in sorted(histogram):
        left -= histogram[bucket]
        if left <= 0:
            break
    return (histogram_floor(bucket + 1) - 1) * tick_nanoseconds() / 1000


class Load:
    """A load with its buffers, on queues of one host; run it once, in one thread.

    With ``verifier``, writes are stamped and reads checked; it must know the namespace's blocks.
    Raises ValueError for a range, block size or depth that doesn't fit, and for Flushes where
    nothing is written.
    """

    def __init__(
        self,
        host: Host,
        queues: Sequence[QueuePair],
        spec: LoadSpec,
        *,
        verifier: Verifier | None = None,
    ) -> None:
        namespace = host.namespaces[spec.nsid]
        blocks, rest = divmod(spec.block_size, namespace.lba_size)
        if not 1 <= blocks <= 65536 or rest:
            raise ValueError(f"I/Os of {spec.block_size} bytes are no whole blocks")
        if spec.block_size > host.max_transfer:
            raise ValueError(f"the controller transfers at most {host.max_transfer} bytes")
        if spec.flush_every and not spec.writes:
            raise ValueError("a load that never writes has nothing to flush")
        if verifier is not None and verifier.lba_size != namespace.lba_size:
            raise ValueError("the verifier has another block size than the namespace")
        length = namespace.blocks - spec.first if spec.length is None else spec.length
        self._spec = spec
        self._queues = list(queues)
        self._buffers: list[Buffer] = []
        self._arena = host.arena
        try:
            slots = [[self._slot(spec.block_size) for _ in range(spec.depth)] for _ in queues]
            self._loop = LoadLoop(
                [queue.ring for queue in queues],
                slots,
                nsid=spec.nsid,
                first=spec.first,
                units=length // blocks,
                blocks=blocks,
                writes=spec.writes,
                sequential=spec.pattern in ("read", "write"),
                seed=spec.seed,
                check=verifier,
                sleep=spec.sleep,
                spin=spec.spin,
                rate=spec.rate,
                flush_every=spec.flush_every,
                watchdog=spec.watchdog,
            )
        except BaseException:
            self._free()
            raise

    def _slot(self, size: int) -> tuple[int, int, int]:
        data = self._arena.allocate(size)
        self._buffers.append(data)
        pages = pointers.prp_pages(data.iova, size)
        if len(pages) <= 2:
            return data.address, pages[0], pages[1] if len(pages) == 2 else 0
        table = self._arena.allocate(pointers.list_pages(len(pages) - 1) * PAGE)
        self._buffers.append(table)
        encoded = pointers.encode_prp_list(pages[1:], table.iova)
        table.view[: len(encoded)] = encoded
        return data.address, pages[0], table.iova

    def _free(self) -> None:
        for buffer in self._buffers:
            buffer.free()
        self._buffers = []

    def stop(self) -> None:
        """From another thread: start nothing more, and wait for what runs."""
        self._loop.stop()

    def run(self, *, ios: int = 0, seconds: float = 0.0, stall: float = 10.0) -> LoadStats:
        """Run until ``ios`` or ``seconds`` are over; ``stall`` seconds of silence end it too."""
        # Who deletes a queue or hangs up waits until the memory is given back.
        for queue in self._queues:
            queue.loads.add(self)
        try:
            stats = LoadStats.of(
                self._loop.run(limit=ios, seconds=seconds, stall=stall), self._spec.block_size
            )
            if stats.lost:
                # The device may still write there: keep the memory as long as the queue.
                self._queues[0].orphans += self._buffers
                self._buffers = []
            self._free()
        finally:
            for queue in self._queues:
                queue.loads.discard(self)
        return stats


def run_load(
    host: Host,
    queues: Sequence[QueuePair],
    spec: LoadSpec,
    *,
    ios: int = 0,
    seconds: float = 0.0,
    verifier: Verifier | None = None,
) -> LoadStats:
    """Run a load in this thread and return its counters, see `Load`."""
    return Load(host, queues, spec, verifier=verifier).run(ios=ios, seconds=seconds)


__all__ = [
    "Load",
    "LoadSpec",
    "LoadStats",
    "Pattern",
    "Verifier",
    "histogram_bucket",
    "run_load",
]
