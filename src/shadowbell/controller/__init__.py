"""The NVMe controller: registers, admin commands, features, logs, namespaces and events.

It decides everything that is not on the I/O path, and reaches memory, queues and storage only
through an `Engine`.
"""

from .controller import Controller
from .engine import Engine, Event, QueueLedger
from .namespaces import MAX_NAMESPACES, Namespace

__all__ = [
    "MAX_NAMESPACES",
    "Controller",
    "Engine",
    "Event",
    "Namespace",
    "QueueLedger",
]
