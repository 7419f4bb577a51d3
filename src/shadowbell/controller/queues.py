"""Commands that make and delete I/O queues, and Doorbell Buffer Config (Base 2.0, 5.4 to 5.8)."""

from __future__ import annotations

from collections.abc import Callable, Container

from shadowbell.dataplane import DmaError
from shadowbell.nvme import QueueFlags, Status
from shadowbell.nvme.registers import ControllerConfiguration

from .command import Command, CommandError, invalid_field, location
from .engine import Engine
from .registers import MQES

PAGE_SIZE = 4096
_SQE_SIZE_LOG2 = 6
_CQE_SIZE_LOG2 = 4


class Queues:
    """The I/O queues of one controller: 1 to `max_queues` of each kind."""

    def __init__(
        self,
        engine: Engine,
        *,
        max_queues: int,
        vectors: int,
        configuration: Callable[[], ControllerConfiguration],
    ) -> None:
        self._engine = engine
        self._max_queues = max_queues
        self._vectors = vectors
        self._configuration = configuration
        self._completion: dict[int, int | None] = {}  # each one's vector
        self._submission: dict[int, int] = {}  # each submission queue's completion queue

    def __bool__(self) -> bool:
        """Whether any I/O queue exists."""
        return bool(self._completion)

    def has_submission(self, qid: int) -> bool:
        """Whether submission queue `qid` exists, the admin queue included."""
        return qid == 0 or qid in self._submission

    def uses_vector(self, vector: int) -> bool:
        """Whether an I/O completion queue interrupts by `vector`."""
        return vector in self._completion.values()

    def reset(self) -> None:
        """Forget all queues; the engine drops its own."""
        self._completion.clear()
        self._submission.clear()

    def create_completion(self, command: Command) -> None:
        """Create I/O Completion Queue (section 5.4)."""
        qid, entries = self._new_queue(command, self._completion)
        if self._configuration().iocqes != _CQE_SIZE_LOG2:
            raise CommandError(Status.INVALID_QUEUE_SIZE)
        flags = command.dword(11)
        vector = command.bits(11, 31, 16) if flags & QueueFlags.IEN else None
        if vector is not None and vector >= self._vectors:
            raise CommandError(Status.INVALID_INTERRUPT_VECTOR, location(11, 16))
        self._require_memory(command)
        self._engine.create_cq(qid, command.sqe.prp1, entries, vector)
        self._completion[qid] = vector

    def create_submission(self, command: Command) -> None:
        """Create I/O Submission Queue (section 5.5)."""
        qid, entries = self._new_queue(command, self._submission)
        if self._configuration().iosqes != _SQE_SIZE_LOG2:
            raise CommandError(Status.INVALID_QUEUE_SIZE)
        cqid = command.bits(11, 31, 16)
        if not 1 <= cqid <= self._max_queues:
            raise CommandError(Status.INVALID_QUEUE_IDENTIFIER, location(11, 16))
        if cqid not in self._completion:
            raise CommandError(Status.COMPLETION_QUEUE_INVALID, location(11, 16))
        self._require_memory(command)
        self._engine.create_sq(qid, command.sqe.prp1, entries, cqid)
        self._submission[qid] = cqid

    def delete_completion(self, command: Command) -> None:
        """Delete I/O Completion Queue (section 5.6)."""
        qid = command.bits(10, 15, 0)
        if qid not in self._completion:
            raise CommandError(Status.INVALID_QUEUE_IDENTIFIER, location(10))
        if qid in self._submission.values():
            raise CommandError(Status.INVALID_QUEUE_DELETION, location(10))
        self._engine.delete_cq(qid)
        del self._completion[qid]

    def delete_submission(self, command: Command) -> None:
        """Delete I/O Submission Queue (section 5.7)."""
        qid = command.bits(10, 15, 0)
        if qid not in self._submission:
            raise CommandError(Status.INVALID_QUEUE_IDENTIFIER, location(10))
        self._engine.delete_sq(qid)
        del self._submission[qid]

    def doorbell_buffer_config(self, command: Command) -> None:
        """Doorbell Buffer Config (section 5.8): two pages of the host's memory."""
        shadow, eventidx = command.sqe.prp1, command.sqe.prp2
        if shadow % PAGE_SIZE:
            raise invalid_field(6)
        if eventidx % PAGE_SIZE or eventidx == shadow:
            raise invalid_field(8)
        try:
            self._engine.set_shadow(shadow, eventidx)
        except DmaError as error:
            raise invalid_field(6) from error

    def _new_queue(self, command: Command, existing: Container[int]) -> tuple[int, int]:
        """Queue identifier and number of entries, checked; CommandError."""
        qid = command.bits(10, 15, 0)
        if not 1 <= qid <= self._max_queues or qid in existing:
            raise CommandError(Status.INVALID_QUEUE_IDENTIFIER, location(10))
        size = command.bits(10, 31, 16)
        if not 1 <= size <= MQES:
            raise CommandError(Status.INVALID_QUEUE_SIZE, location(10, 16))
        return qid, size + 1

    def _require_memory(self, command: Command) -> None:
        """The queue must be contiguous (CAP.CQR) and start on a page; CommandError."""
        if not command.dword(11) & QueueFlags.PC:
            raise invalid_field(11)
        if command.sqe.prp1 % PAGE_SIZE:
            raise CommandError(Status.PRP_OFFSET_INVALID, location(6))
