from collections.abc import Sequence

from shadowbell.block.backend import Backend

OPS: dict[str, int]
FUA: int
UNMAP: int

class PassthroughBackend(Backend):
    def __init__(
        self,
        fd: int,
        size: int,
        *,
        nsid: int,
        lba_shift: int,
        max_transfer: int,
        zeroes: bool,
        deallocates: bool,
        reads_zeroes: bool,
        read_only: bool,
    ) -> None: ...

def command_for(
    op: int,
    *,
    nsid: int = 1,
    lba_shift: int = 9,
    max_transfer: int = 0,
    offset: int = 0,
    length: int = 0,
    done: int = 0,
    flags: int = 0,
    pieces: Sequence[tuple[int, int]] = (),
    zeroes: bool = True,
) -> tuple[bool, int, int, int | tuple[int, int, int], int, int, int, int, int]: ...
def status_meaning(res: int) -> int: ...
