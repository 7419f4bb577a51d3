from typing import Literal

class IOThread:
    index: int
    cpu: int | None
    def __init__(
        self, index: int, *, poll_max_us: int | Literal["busy"] = 256, cpu: int | None = None
    ) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
