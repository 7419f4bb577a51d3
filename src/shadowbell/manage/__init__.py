"""Serving: the reactor, listening sockets and the lifecycle of clients."""

from shadowbell.manage.server import Server

__all__ = ["Server"]
