from shadowbell.block.file import FileBackend

class TmpfsBackend(FileBackend):
    def __init__(self, fd: int, size: int, *, read_only: bool) -> None: ...
