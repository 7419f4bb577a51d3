"""Block back ends: where a namespace's bytes live."""

from shadowbell.block.backend import Backend
from shadowbell.block.opening import open_backend

__all__ = ["Backend", "open_backend"]
