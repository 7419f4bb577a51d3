"""The MSI-X table as the guest sees it: backing store only.

The client delivers vectors by the eventfds it gave with SET_IRQS and does its own masking, so
nothing here decides whether an interrupt is raised.
"""

from __future__ import annotations

import struct

from shadowbell.pci.registers import MSIX_ENTRY_SIZE

_ENTRY = struct.Struct("<IIII")
_RESET = _ENTRY.pack(0, 0, 0, 1)  # masked
_WRITEABLE = _ENTRY.pack(0xFFFFFFFC, 0xFFFFFFFF, 0xFFFFFFFF, 1)


class MsixTable:
    """Offsets are from the table's start; what lies past the last entry reads 0."""

    def __init__(self, vectors: int) -> None:
        self._vectors = vectors
        self._writeable = _WRITEABLE * vectors
        self._bytes = bytearray()
        self.reset()

    def read(self, offset: int, count: int) -> bytes:
        return bytes(self._bytes[offset : offset + count]).ljust(count, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        for at, value in enumerate(data, offset):
            if at >= len(self._bytes):
                break
            mask = self._writeable[at]
            self._bytes[at] = self._bytes[at] & ~mask | value & mask

    def reset(self) -> None:
        self._bytes = bytearray(_RESET * self._vectors)
        assert len(self._bytes) == self._vectors * MSIX_ENTRY_SIZE
