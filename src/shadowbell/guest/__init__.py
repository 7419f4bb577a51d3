"""A Linux guest in QEMU: what the demo and the tests attach to a shadowbell disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .agent import AgentError
from .machine import Guest, GuestError, available, disk
from .qmp import QmpError
from .served import Ledger, Served, ServeError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "AgentError",
    "Guest",
    "GuestError",
    "Ledger",
    "QmpError",
    "ServeError",
    "Served",
    "available",
    "demo",
    "disk",
]


def demo(console: Console) -> None:
    """Boots a guest with three disks, measures and verifies each; GuestError, ServeError."""
    from .demonstration import demo as run  # draws tables; the rest needs only the standard library

    run(console)
