from collections.abc import Callable

from shadowbell.block.backend import Backend
from shadowbell.block.images import ImageServer
from shadowbell.block.nbd_connector import Connector

class Handle:
    def connect(self, uri: str, wanted: Callable[[], bool], seconds: float) -> None:
        """Connect; may block for `seconds`, in looking up names for longer. Raises OSError."""
    @property
    def size(self) -> int: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def multi(self) -> bool:
        """Several connections see one disk: a flush on one covers what all have written."""
    @property
    def minimum_block(self) -> int:
        """Bytes that requests must be aligned to."""
    @property
    def preferred_block(self) -> int:
        """Bytes that requests should be aligned to, 0 when the server doesn't say."""

class NbdBackend(Backend):
    connector: Connector | None
    server: ImageServer | None
    def __init__(self, handle: Handle, *, read_only: bool, timeout: float) -> None: ...
    @property
    def multi(self) -> bool: ...
    @property
    def wanted_fd(self) -> int:
        """An eventfd: `wanting` has something to say."""
    def wanting(self) -> list[int]:
        """Take the IOThreads that lack a connection."""
    def give(self, index: int, handle: Handle) -> None:
        """Give an IOThread a connection, which isn't `handle`'s any more."""
