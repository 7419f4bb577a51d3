from collections.abc import Sequence
from typing import Any

from shadowbell.driver.hostqueue import SubmissionRing
from shadowbell.driver.verifier import Verifier

class LoadLoop:
    results: dict[str, Any]
    def __init__(
        self,
        rings: list[SubmissionRing],
        slots: Sequence[Sequence[tuple[int, int, int]]],
        *,
        nsid: int,
        first: int,
        units: int,
        blocks: int,
        writes: int,
        sequential: bool,
        seed: int,
        check: Verifier | None = None,
        sleep: bool = False,
        spin: float = 0.0,
        rate: float = 0.0,
        watchdog: float = 0.0,
        flush_every: int = 0,
    ) -> None: ...
    def stop(self) -> None: ...
    def run(self, limit: int = 0, seconds: float = 0.0, stall: float = 10.0) -> dict[str, Any]: ...
