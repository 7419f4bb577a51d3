"""The names that the tests and fixtures share."""

from collections.abc import Callable

from shadowbell.driver import Host
from shadowbell.guest import Served

SOCKET = "disk.sock"
SERVE = {"trap": ("--no-dbbuf",), "shadow": (), "mapped": ("--doorbells", "mapped", "--no-dbbuf")}

Serve = Callable[..., Served]
Attach = Callable[..., Host]
