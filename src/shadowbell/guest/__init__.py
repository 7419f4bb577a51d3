"""A Linux guest in QEMU: what the demo and the tests attach to a shadowbell disk."""

from .machine import Guest, GuestError, available, disk

__all__ = ["Guest", "GuestError", "available", "disk"]
