"""Admin commands: identify, features, logs, events, abort, queues and the doorbell buffer."""

import threading
from dataclasses import dataclass

from shadowbell.driver.queue_pair import Completion, QueuePair
from shadowbell.nvme import (
    NSID_ALL,
    AdminOpcode,
    Cns,
    Feature,
    IdentifyController,
    IdentifyNamespace,
    QueueFlags,
    SubmissionEntry,
)
from shadowbell.nvme.events import parse_event_dword
from shadowbell.nvme.features import SAVE, Select
from shadowbell.nvme.identify import IDENTIFY_SIZE, NamespaceList, parse_descriptors


@dataclass(frozen=True)
class Event:
    """An asynchronous event (Base 2.0, section 5.2)."""

    type: int
    information: int
    log: int


class Admin:
    """The admin queue. Any thread may call; commands take turns.

    Methods raise CommandError for an error status and TimeoutError when nothing comes back.
    """

    def __init__(self, queue: QueuePair) -> None:
        self.queue = queue
        self._lock = threading.RLock()
        self._parked: set[int] = set()

    def execute(
        self,
        sqe: SubmissionEntry,
        data: bytes = b"",
        length: int = 0,
        *,
        check: bool = True,
        timeout: float = 30.0,
    ) -> tuple[Completion, bytes]:
        """Any admin command with ``data`` to or ``length`` bytes from the device."""
        with self._lock:
            return self.queue.transfer(sqe, data, length, check=check, timeout=timeout)

    # --- identify

    def identify(self, cns: int, *, nsid: int = 0, cntid: int = 0, csi: int = 0) -> bytes:
        """The 4096 bytes of an Identify structure."""
        sqe = SubmissionEntry(
            opcode=AdminOpcode.IDENTIFY, nsid=nsid, cdw10=cns | cntid << 16, cdw11=csi << 24
        )
        return self.execute(sqe, length=IDENTIFY_SIZE)[1]

    def identify_controller(self) -> IdentifyController:
        """CNS 01h."""
        return IdentifyController(self.identify(Cns.CONTROLLER))

    def identify_namespace(self, nsid: int) -> IdentifyNamespace:
        """CNS 00h."""
        return IdentifyNamespace(self.identify(Cns.NAMESPACE, nsid=nsid))

    def active_namespaces(self, after: int = 0) -> list[int]:
        """CNS 02h: namespace identifiers greater than ``after``."""
        return list(NamespaceList(self.identify(Cns.ACTIVE_NAMESPACE_LIST, nsid=after)))

    def namespace_descriptors(self, nsid: int) -> dict[int, bytes]:
        """CNS 03h: {NIDT: NID}."""
        cns = Cns.NAMESPACE_IDENTIFICATION_DESCRIPTORS
        return parse_descriptors(self.identify(cns, nsid=nsid))

    # --- features and logs

    def get_feature(
        self,
        feature: int,
        select: int = Select.CURRENT,
        *,
        cdw11: int = 0,
        nsid: int = 0,
        length: int = 0,
    ) -> tuple[int, bytes]:
        """Return (completion dword 0, data)."""
        sqe = SubmissionEntry(
            opcode=AdminOpcode.GET_FEATURES, nsid=nsid, cdw10=feature | select << 8, cdw11=cdw11
        )
        completion, data = self.execute(sqe, length=length)
        return completion.dw0, data

    def set_feature(
        self, feature: int, value: int, *, nsid: int = 0, data: bytes = b"", save: bool = False
    ) -> int:
        """Set a feature to command dword 11 ``value``; returns completion dword 0."""
        sqe = SubmissionEntry(
            opcode=AdminOpcode.SET_FEATURES,
            nsid=nsid,
            cdw10=feature | (SAVE if save else 0),
            cdw11=value,
        )
        return self.execute(sqe, data)[0].dw0

    def request_queues(self, count: int) -> tuple[int, int]:
        """Number of Queues: ask for ``count`` pairs, return (submission, completion) granted."""
        value = count - 1 | (count - 1) << 16
        granted = self.set_feature(Feature.NUMBER_OF_QUEUES, value)
        return (granted & 0xFFFF) + 1, (granted >> 16) + 1

    def get_log(
        self,
        log: int,
        length: int,
        *,
        offset: int = 0,
        nsid: int = NSID_ALL,
        retain: bool = False,
        specific: int = 0,
    ) -> bytes:
        """Read ``length`` bytes (a multiple of 4) of a log page; ``retain`` keeps its event."""
        dwords = length // 4 - 1
        sqe = SubmissionEntry(
            opcode=AdminOpcode.GET_LOG_PAGE,
            nsid=nsid,
            cdw10=log | specific << 8 | retain << 15 | (dwords & 0xFFFF) << 16,
            cdw11=dwords >> 16,
            cdw12=offset & 0xFFFFFFFF,
            cdw13=offset >> 32,
        )
        return self.execute(sqe, length=length)[1]

    # --- events and abort

    def request_event(self) -> int:
        """Park an Asynchronous Event Request; returns its command identifier."""
        with self._lock:
            sqe = SubmissionEntry(opcode=AdminOpcode.ASYNCHRONOUS_EVENT_REQUEST)
            cid = self.queue.submit(sqe)
            self._parked.add(cid)
            return cid

    def events(self, timeout: float = 0.0) -> list[Event]:
        """Events reported since; waits up to ``timeout`` for the first.

        Event requests that were completed with an error status (aborted) give no event.
        """
        with self._lock:
            queue = self.queue
            queue.completions.reap()
            if not self._finished() and timeout and queue.completions.ring.wait(timeout):
                queue.completions.reap()
            found = []
            for cid in self._finished():
                self._parked.discard(cid)
                completion = queue.completions.done.pop((0, cid))
                if completion.status == 0:
                    found.append(Event(*parse_event_dword(completion.dw0)))
            return found

    def _finished(self) -> list[int]:
        return [cid for cid in self._parked if (0, cid) in self.queue.completions.done]

    def abort(self, sqid: int, cid: int) -> bool:
        """Ask to abort a command; whether the device says that it did."""
        sqe = SubmissionEntry(opcode=AdminOpcode.ABORT, cdw10=sqid | cid << 16)
        return not self.execute(sqe)[0].dw0 & 1

    # --- queues

    def create_cq(self, qid: int, iova: int, entries: int, vector: int | None) -> None:
        """Create I/O Completion Queue; ``vector`` None: no interrupts."""
        flags = QueueFlags.PC | (QueueFlags.IEN if vector is not None else 0)
        sqe = SubmissionEntry(
            opcode=AdminOpcode.CREATE_IO_COMPLETION_QUEUE,
            prp1=iova,
            cdw10=qid | (entries - 1) << 16,
            cdw11=flags | (vector or 0) << 16,
        )
        self.execute(sqe)

    def create_sq(self, qid: int, iova: int, entries: int, cqid: int) -> None:
        """Create I/O Submission Queue."""
        sqe = SubmissionEntry(
            opcode=AdminOpcode.CREATE_IO_SUBMISSION_QUEUE,
            prp1=iova,
            cdw10=qid | (entries - 1) << 16,
            cdw11=QueueFlags.PC | cqid << 16,
        )
        self.execute(sqe)

    def delete_sq(self, qid: int) -> None:
        """Delete I/O Submission Queue."""
        opcode = AdminOpcode.DELETE_IO_SUBMISSION_QUEUE
        self.execute(SubmissionEntry(opcode=opcode, cdw10=qid))

    def delete_cq(self, qid: int) -> None:
        """Delete I/O Completion Queue."""
        opcode = AdminOpcode.DELETE_IO_COMPLETION_QUEUE
        self.execute(SubmissionEntry(opcode=opcode, cdw10=qid))

    def configure_doorbell_buffer(self, shadow: int, eventidx: int) -> None:
        """Doorbell Buffer Config with the two pages' addresses."""
        opcode = AdminOpcode.DOORBELL_BUFFER_CONFIG
        self.execute(SubmissionEntry(opcode=opcode, prp1=shadow, prp2=eventidx))
