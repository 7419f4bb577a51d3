from shadowbell.block.backend import Backend

class FileBackend(Backend):
    def __init__(
        self,
        fd: int,
        size: int,
        *,
        memory_align: int,
        length_align: int,
        read_only: bool,
        discards: bool = False,
        polled: bool = False,
    ) -> None: ...

def direct_alignment(fd: int) -> tuple[int, int]: ...
def in_memory(fd: int) -> bool: ...
