from collections.abc import Sequence
from typing import Any

from shadowbell.driver.hostqueue import SubmissionRing

HISTOGRAM_BUCKETS: int

def histogram_bucket(value: int) -> int: ...
def histogram_floor(bucket: int) -> int: ...
def tick_nanoseconds() -> float: ...

class Verifier:
    blocks: int
    lba_size: int
    seed: int
    def __init__(self, blocks: int, lba_size: int, seed: int = 1) -> None: ...
    def prepare(self, lba: int, data: bytearray | memoryview) -> None: ...
    def confirm(self, lba: int, count: int) -> None: ...
    def check(self, lba: int, data: bytes | bytearray | memoryview) -> int | None: ...
    def forget(self, lba: int, count: int) -> None: ...
    def expects(self, lba: int) -> tuple[int, int]: ...

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
    ) -> None: ...
    def stop(self) -> None: ...
    def run(self, limit: int = 0, seconds: float = 0.0, stall: float = 10.0) -> dict[str, Any]: ...
