"""What the data plane tells the control plane."""

from typing import NamedTuple


class Event(NamedTuple):
    """Something that happened on the I/O path.

    ``kind``: ``invalid-doorbell-register``, ``invalid-doorbell-value`` (``cid`` is 1 for a
    completion queue's head), ``io-error`` (a command ended with ``status``) or ``bus-error`` (the
    client took memory away that it had mapped).
    """

    kind: str
    qid: int
    cid: int
    status: int
    nsid: int
    lba: int
    phase: int = 0  # the Phase Tag of an io-error's completion


class TransferError(Exception):
    """A command's data pointer can't be used; ``status`` is SCT << 8 | SC."""

    def __init__(self, status: int) -> None:
        super().__init__(f"data transfer failed with status {status:#05x}")
        self.status = status
