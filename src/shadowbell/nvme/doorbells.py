"""Doorbells and shadow doorbells (PCIe Transport 1.0, section 3.1.2; Base 2.0, section 5.8)."""

DOORBELL_BASE = 0x1000
"""Offset of the first doorbell in BAR0."""
DOORBELL_SIZE = 4
SHADOW_BUFFER_SIZE = 4096
"""Bytes of the Shadow Doorbell buffer and of the EventIdx buffer: one memory page each."""


def submission_slot(qid: int) -> int:
    """Index of a submission queue's tail among doorbells, shadow values and EventIdx values."""
    return 2 * qid


def completion_slot(qid: int) -> int:
    """Index of a completion queue's head among doorbells, shadow values and EventIdx values."""
    return 2 * qid + 1


def submission_doorbell(qid: int, dstrd: int = 0) -> int:
    """BAR0 offset of Submission Queue y Tail Doorbell."""
    return DOORBELL_BASE + submission_slot(qid) * (DOORBELL_SIZE << dstrd)


def completion_doorbell(qid: int, dstrd: int = 0) -> int:
    """BAR0 offset of Completion Queue y Head Doorbell."""
    return DOORBELL_BASE + completion_slot(qid) * (DOORBELL_SIZE << dstrd)


def must_ring(event_idx: int, new: int, old: int) -> bool:
    """Whether moving a shadow doorbell from `old` to `new` passes `event_idx`.

    True means that the host writes the doorbell register too (Base 2.0, section 5.8, annex B.5).
    """
    return (new - event_idx - 1) & 0xFFFF < (new - old) & 0xFFFF
