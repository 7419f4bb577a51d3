"""The ledger: what each queue pair counted, as Python sees it.

The counters are plain words of memory that one IOThread writes and anybody may read; a read may be
a few commands old, never torn.
"""

from collections.abc import Iterable, Mapping

import msgspec

OPCODE_NAMES = {
    0x00: "flush",
    0x01: "write",
    0x02: "read",
    0x05: "compare",
    0x08: "write_zeroes",
    0x09: "dataset_management",
    0x0C: "verify",
}


def bucket_ns(bucket: int) -> int:
    """Return the lower bound in nanoseconds of a latency bucket: four buckets an octave."""
    if bucket < 4:
        return bucket
    octave, quarter = divmod(bucket, 4)
    return (4 + quarter) << (octave - 1)


class QueueLedger(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of one queue pair since the controller began; ``qid`` 0 is the admin queue.

    ``iothread`` is the IOThread that serves the submission queue now; None: the control plane
    does, or the queue is gone.
    ``latency`` is a log-linear histogram: (lower bound in ns, commands) of the buckets in use, from
    fetching a command to its completion entry.
    """

    qid: int
    iothread: int | None
    doorbells: int
    ioeventfd_wakeups: int
    shadow_finds: int
    eventidx_stores: int
    arms: int
    arms_lost: int
    interrupts: int
    interrupts_suppressed: int
    commands: Mapping[str, int]
    bytes_read: int
    bytes_written: int
    errors: int
    media_errors: int
    latency: tuple[tuple[int, int], ...]

    @property
    def ios(self) -> int:
        return sum(self.commands.values())

    def percentile_ns(self, fraction: float) -> int:
        """Return the latency in ns that ``fraction`` (0 to 1) of the commands stayed under."""
        total = sum(count for _, count in self.latency)
        seen = 0
        for lower, count in self.latency:
            seen += count
            if seen >= fraction * total:
                return lower
        return 0


def name_commands(counts: Iterable[int]) -> dict[str, int]:
    """Name the per-opcode counts; opcodes we don't know are summed as ``other``."""
    named: dict[str, int] = {}
    for opcode, count in enumerate(counts):
        if count:
            name = OPCODE_NAMES.get(opcode, "other")
            named[name] = named.get(name, 0) + count
    return named
