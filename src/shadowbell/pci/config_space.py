"""The 4096 bytes of configuration space: plain bytes with a mask of what a guest may write."""

from __future__ import annotations

from collections.abc import Iterable

from shadowbell.pci.registers import (
    CONFIG_SIZE,
    D0,
    D3HOT,
    DEVCTL,
    DEVCTL_FLR,
    PMCSR,
    PMCSR_STATE,
    Block,
)


class ConfigSpace:
    """Any access within the space is fine; writes to read-only bits are dropped without error."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._initial = bytearray(CONFIG_SIZE)
        self._writeable = bytearray(CONFIG_SIZE)
        for block in blocks:
            end = block.offset + len(block.initial)
            self._initial[block.offset : end] = block.initial
            self._writeable[block.offset : end] = block.writeable
        self._bytes = bytearray(self._initial)

    def read(self, offset: int, count: int) -> bytes:
        return bytes(self._bytes[offset : offset + count])

    def write(self, offset: int, data: bytes) -> bool:
        """Store what may be written; True when the write asks for a Function Level Reset."""
        state = self._bytes[PMCSR] & PMCSR_STATE
        for at, value in enumerate(data, offset):
            mask = self._writeable[at]
            self._bytes[at] = self._bytes[at] & ~mask | value & mask
        if self._bytes[PMCSR] & PMCSR_STATE not in (D0, D3HOT):
            # PCI PM 1.2, 3.2.4: a write of an unsupported state completes and is discarded.
            self._bytes[PMCSR] = self._bytes[PMCSR] & ~PMCSR_STATE | state
        high = DEVCTL + 1 - offset
        return 0 <= high < len(data) and bool(data[high] & DEVCTL_FLR >> 8)

    def reset(self) -> None:
        self._bytes[:] = self._initial
