from typing import Literal

class IOThread:
    index: int
    cpu: int | None
    def __init__(
        self,
        index: int,
        *,
        poll_max_us: int | Literal["busy"] = 1024,
        cpu: int | None = None,
        sqpoll: bool = False,
        iopoll: bool = False,
    ) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    @property
    def busy_ns(self) -> int:
        """Nanoseconds spent in rounds that found work, since the thread began."""

    @property
    def fixed_transfers(self) -> int:
        """Transfers that went through registered memory."""

    def set_alarm(self, fd: int, busy_ns: int) -> None:
        """Have eventfd ``fd`` written, once, when the thread was busy for ``busy_ns`` more."""
