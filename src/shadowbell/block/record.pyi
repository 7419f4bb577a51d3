from shadowbell.block.backend import Backend

class RecordingBackend(Backend):
    def __init__(self, inner: Backend, log: int, lba: int) -> None: ...
