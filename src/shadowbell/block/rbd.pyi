from shadowbell.block.backend import Backend
from shadowbell.block.rbd_pool import Pool
from shadowbell.block.rbd_watcher import Watcher

class RbdBackend(Backend):
    watcher: Watcher | None
    def __init__(
        self, pool: Pool, image: str, snapshot: str | None, *, read_only: bool
    ) -> None: ...
    @property
    def news_fd(self) -> int:
        """An eventfd: the image's size or metadata may have changed, or it is `away`."""
    @property
    def away(self) -> bool:
        """Another server has the image now: every command is answered with "not ready"."""
    def measure(self) -> int: ...
    def provide(self, size: int) -> None: ...
    def owners(self) -> list[str]:
        """The clients that hold the exclusive lock: one or none."""
    def owned(self) -> bool: ...
    def lock(self) -> None:
        """Acquire the exclusive lock and keep it against all requests; EROFS: another has it."""
    def give_up(self) -> None:
        """Answer new commands with "not ready", await the others, flush, release the lock."""
    def break_lock(self, owner: str) -> None:
        """Shut `owner` out of the cluster and take its lock away."""
    def read_note(self, key: str) -> str | None: ...
    def write_note(self, key: str, value: str | None) -> None:
        """Set an entry of the image's metadata, or remove it."""
