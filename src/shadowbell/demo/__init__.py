"""`shadowbell demo`: a disk, its server, a driver on the real socket, and what it costs."""

from shadowbell.demo.show import run

__all__ = ["run"]
