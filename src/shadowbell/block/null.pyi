from shadowbell.block.backend import Backend

class NullBackend(Backend):
    def __init__(self, size: int, *, read_only: bool = False) -> None: ...
