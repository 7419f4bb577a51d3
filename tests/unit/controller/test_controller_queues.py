"""I/O queues and Doorbell Buffer Config (Base 2.0, 5.4 to 5.8)."""

import pytest
from controller_fakes import CC_ENABLE, MEMORY, Host

from shadowbell.nvme import AdminOpcode
from shadowbell.nvme import Status as S

CREATE_CQ = AdminOpcode.CREATE_IO_COMPLETION_QUEUE
CREATE_SQ = AdminOpcode.CREATE_IO_SUBMISSION_QUEUE
DELETE_CQ = AdminOpcode.DELETE_IO_COMPLETION_QUEUE
DELETE_SQ = AdminOpcode.DELETE_IO_SUBMISSION_QUEUE
DBBUF = AdminOpcode.DOORBELL_BUFFER_CONFIG

PC, IEN = 1, 2


def queue(qid: int, entries: int = 64) -> int:
    """Command Dword 10: identifier and 0's based size."""
    return qid | entries - 1 << 16


@pytest.fixture
def paired(host: Host) -> Host:
    """A host with I/O queue pair 1, made without Set Features Number of Queues."""
    assert host.do(CREATE_CQ, cdw10=queue(1), cdw11=PC | IEN | 1 << 16).status == 0
    assert host.do(CREATE_SQ, cdw10=queue(1, 4096), cdw11=PC | 1 << 16).status == 0
    return host


def test_create(paired: Host) -> None:
    assert paired.engine.log[-2:] == [
        ("create_cq", 1, 0x10000, 64, 1),
        ("create_sq", 1, 0x10000, 4096, 1),
    ]


def test_without_interrupts_the_vector_does_not_matter(host: Host) -> None:
    """Base 2.0, 5.4: IEN cleared."""
    assert host.do(CREATE_CQ, cdw10=queue(2), cdw11=PC | 0xFFFF << 16).status == 0
    assert host.engine.log[-1] == ("create_cq", 2, 0x10000, 64, None)


def test_several_submission_queues_share_a_completion_queue(paired: Host) -> None:
    """Base 2.0, 3.3.1.1: n to 1; the completion queue goes last."""
    assert paired.do(CREATE_SQ, cdw10=queue(8), cdw11=PC | 1 << 16).status == 0
    for sqid, status in ((1, S.INVALID_QUEUE_DELETION), (8, S.SUCCESSFUL_COMPLETION)):
        assert paired.do(DELETE_SQ, cdw10=sqid).status == 0
        assert S(paired.do(DELETE_CQ, cdw10=1).status) is status
    assert paired.engine.log[-3:] == [("delete_sq", 1), ("delete_sq", 8), ("delete_cq", 1)]
    assert paired.do(CREATE_CQ, cdw10=queue(1), cdw11=PC).status == 0


@pytest.mark.parametrize(
    ("opcode", "cdw10", "cdw11", "prp1", "status"),
    [
        (CREATE_CQ, queue(0), PC, 0x1000, S.INVALID_QUEUE_IDENTIFIER),
        (CREATE_CQ, queue(9), PC, 0x1000, S.INVALID_QUEUE_IDENTIFIER),
        (CREATE_CQ, queue(1), PC, 0x1000, S.INVALID_QUEUE_IDENTIFIER),
        (CREATE_CQ, queue(2, 1), PC, 0x1000, S.INVALID_QUEUE_SIZE),
        (CREATE_CQ, queue(2, 4097), PC, 0x1000, S.INVALID_QUEUE_SIZE),
        (CREATE_CQ, queue(2), PC | IEN | 9 << 16, 0x1000, S.INVALID_INTERRUPT_VECTOR),
        (CREATE_CQ, queue(2), 0, 0x1000, S.INVALID_FIELD_IN_COMMAND),
        (CREATE_CQ, queue(2), PC, 0x1004, S.PRP_OFFSET_INVALID),
        (CREATE_SQ, queue(0), PC | 1 << 16, 0x1000, S.INVALID_QUEUE_IDENTIFIER),
        (CREATE_SQ, queue(9), PC | 1 << 16, 0x1000, S.INVALID_QUEUE_IDENTIFIER),
        (CREATE_SQ, queue(1), PC | 1 << 16, 0x1000, S.INVALID_QUEUE_IDENTIFIER),
        (CREATE_SQ, queue(2, 1), PC | 1 << 16, 0x1000, S.INVALID_QUEUE_SIZE),
        (CREATE_SQ, queue(2, 4097), PC | 1 << 16, 0x1000, S.INVALID_QUEUE_SIZE),
        (CREATE_SQ, queue(2), PC, 0x1000, S.INVALID_QUEUE_IDENTIFIER),
        (CREATE_SQ, queue(2), PC | 9 << 16, 0x1000, S.INVALID_QUEUE_IDENTIFIER),
        (CREATE_SQ, queue(2), PC | 2 << 16, 0x1000, S.COMPLETION_QUEUE_INVALID),
        (CREATE_SQ, queue(2), 1 << 16, 0x1000, S.INVALID_FIELD_IN_COMMAND),
        (CREATE_SQ, queue(2), PC | 1 << 16, 0x1800, S.PRP_OFFSET_INVALID),
        (DELETE_SQ, 0, 0, 0, S.INVALID_QUEUE_IDENTIFIER),
        (DELETE_SQ, 2, 0, 0, S.INVALID_QUEUE_IDENTIFIER),
        (DELETE_CQ, 0, 0, 0, S.INVALID_QUEUE_IDENTIFIER),
        (DELETE_CQ, 2, 0, 0, S.INVALID_QUEUE_IDENTIFIER),
        (DELETE_CQ, 1, 0, 0, S.INVALID_QUEUE_DELETION),
    ],
)
def test_errors(paired: Host, opcode: int, cdw10: int, cdw11: int, prp1: int, status: S) -> None:
    """Base 2.0, 5.4.1, 5.5.1, 5.6.1 and 5.7.1: each error, and nothing reaches the engine."""
    before = list(paired.engine.log)
    done = paired.do(opcode, cdw10=cdw10, cdw11=cdw11, prp1=prp1)
    assert S(done.status) is status
    assert done.dnr
    assert paired.engine.log == before


@pytest.mark.parametrize("opcode", [CREATE_CQ, CREATE_SQ])
def test_entry_sizes_must_be_set_first(paired: Host, opcode: int) -> None:
    """Base 2.0, 5.4.1 and 5.5.1: Invalid Queue Size before CC.IOCQES and CC.IOSQES are set."""
    paired.write32(0x14, CC_ENABLE & ~0xFF0000)
    assert S(paired.do(opcode, cdw10=queue(2), cdw11=PC | 1 << 16).status) is S.INVALID_QUEUE_SIZE
    paired.write32(0x14, CC_ENABLE)
    assert paired.do(opcode, cdw10=queue(2), cdw11=PC | 1 << 16).status == 0


def test_reset_forgets_queues(paired: Host) -> None:
    paired.write32(0x14, 0)
    paired.enable()
    assert S(paired.do(DELETE_SQ, cdw10=1).status) is S.INVALID_QUEUE_IDENTIFIER
    assert paired.do(CREATE_CQ, cdw10=queue(1), cdw11=PC).status == 0


def test_doorbell_buffers(host: Host) -> None:
    """Base 2.0, 5.8."""
    assert host.do(DBBUF, prp1=0x4000, prp2=0x5000).status == 0
    assert host.engine.log[-1] == ("set_shadow", 0x4000, 0x5000)


@pytest.mark.parametrize(
    ("prp1", "prp2"),
    [(0x4004, 0x5000), (0x4000, 0x5800), (0x4000, 0x4000), (MEMORY, 0x5000), (0x4000, 1 << 60)],
)
def test_doorbell_buffer_errors(host: Host, prp1: int, prp2: int) -> None:
    assert S(host.do(DBBUF, prp1=prp1, prp2=prp2).status) is S.INVALID_FIELD_IN_COMMAND


def test_doorbell_buffers_can_be_switched_off() -> None:
    host = Host(dbbuf=False)
    host.enable()
    assert S(host.do(DBBUF, prp1=0x4000, prp2=0x5000).status) is S.INVALID_COMMAND_OPCODE
