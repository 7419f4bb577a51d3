"""Which IOThread carries which queue of a controller, as its configuration says.

The rules are those of QEMU's `iothread-vq-mapping`: every entry names an IOThread once; either all
entries list their queues, and then each queue is in exactly one list, or none does, and then the
queues take the IOThreads in turn.
"""

from collections.abc import Sequence

import msgspec

from shadowbell.errors import UserError


class IOThreadQueues(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An IOThread, counted from 0, and the I/O queues that it carries, counted from 1.

    A queue is a completion queue: the submission queues that use it are always on its IOThread.
    """

    iothread: int
    queues: tuple[int, ...] | None = None


IOThreadMap = tuple[int | IOThreadQueues, ...]
"""A number alone is an IOThread without a list of queues."""


def place_queues(entries: Sequence[int | IOThreadQueues], max_queues: int) -> tuple[int, ...]:
    """Return the IOThreads of I/O queues 1 to `max_queues`. Raises UserError for a bad map."""
    if not entries:
        raise UserError("iothreads is empty: list an I/O thread, or leave it out")
    threads = [entry if isinstance(entry, int) else entry.iothread for entry in entries]
    for thread in threads:
        if thread < 0:
            raise UserError(f"there is no I/O thread {thread}: count them from 0")
        if threads.count(thread) > 1:
            raise UserError(f"I/O thread {thread} is listed twice: give it one entry")
    lists = [None if isinstance(entry, int) else entry.queues for entry in entries]
    if all(queues is None for queues in lists):
        return tuple(threads[number % len(threads)] for number in range(max_queues))
    placed: dict[int, int] = {}
    for thread, queues in zip(threads, lists, strict=True):
        if queues is None:
            raise UserError(
                f"I/O thread {thread} lists no queues but another does: list them for all or none"
            )
        for queue in queues:
            if not 1 <= queue <= max_queues:
                raise UserError(f"there is no queue {queue}: max_queues allows 1 to {max_queues}")
            if queue in placed:
                raise UserError(f"queue {queue} is listed twice: list it once")
            placed[queue] = thread
    for queue in range(1, max_queues + 1):
        if queue not in placed:
            raise UserError(f"queue {queue} has no I/O thread: list it, or set max_queues lower")
    return tuple(placed[queue] for queue in range(1, max_queues + 1))
