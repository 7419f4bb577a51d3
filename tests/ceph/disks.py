"""The names that the tests and fixtures of this folder share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shadowbell.driver import Host, QueuePair
from shadowbell.guest import Served

SOCKET = "disk.sock"
MIB = 1 << 20

Serve = Callable[..., Served]
Attach = Callable[[Served], Host]


@dataclass
class Disk:
    """An image, its server and a host that has one queue pair there."""

    image: str
    served: Served
    host: Host
    queue: QueuePair
    lba: int


MakeDisk = Callable[..., Disk]
