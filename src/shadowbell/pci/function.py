"""The PCI function: which byte of which region belongs to whom.

BAR0, 16 KiB: controller registers, doorbells (DSTRD 0), MSI-X table, pending bits, a page each.
No guest access is an error: reads of what isn't there give 0, writes to it are dropped.
"""

from __future__ import annotations

import hashlib
import itertools
from typing import Literal, Protocol

from shadowbell.nvme import ids
from shadowbell.pci import registers as pci
from shadowbell.pci.config_space import ConfigSpace
from shadowbell.pci.msix_table import MsixTable

REGION_BAR0 = 0
REGION_CONFIG = 7
PAGE = 0x1000


class Registers(Protocol):
    """What the function needs of the controller; see `shadowbell.controller.Controller`."""

    def read_register(self, offset: int, length: int) -> bytes: ...
    def write_register(self, offset: int, data: bytes) -> None: ...
    def reset(self, *, power_loss: bool = False) -> None: ...


class Doorbells(Protocol):
    """What the function needs of the engine; `offset` counts from BAR0's start."""

    def doorbell_write(self, offset: int, data: bytes) -> None: ...


def vector_count(interrupts: Literal["msix", "msi"], max_queues: int) -> int:
    """Interrupt vectors of a controller with `max_queues` I/O queue pairs: one each and the admin
    queue's. MSI has powers of two, 32 at most, so that queues may have to share."""
    wanted = max_queues + 1
    if interrupts == "msix":
        return wanted
    return min(pci.MAX_MSI_VECTORS, 1 << (wanted - 1).bit_length())


class PciFunction:
    """`serial` seeds the Device Serial Number; `vectors` is `vector_count`'s."""

    def __init__(
        self,
        controller: Registers,
        engine: Doorbells,
        *,
        interrupts: Literal["msix", "msi"],
        vectors: int,
        serial: str,
    ) -> None:
        self._controller = controller
        self._engine = engine
        self._msix = MsixTable(vectors if interrupts == "msix" else 0)
        self._irq_counts = (0, vectors, 0, 1, 0) if interrupts == "msi" else (0, 0, vectors, 1, 0)
        digest = hashlib.sha256(serial.encode()).digest()
        self._config = ConfigSpace(
            [
                *pci.header(
                    ids.PCI_VENDOR_ID,
                    ids.PCI_DEVICE_ID,
                    ids.PCI_CLASS_CODE,
                    (ids.PCI_SUBSYSTEM_VENDOR_ID, ids.PCI_SUBSYSTEM_ID),
                ),
                pci.power_management(),
                pci.msi(vectors) if interrupts == "msi" else pci.msix(vectors),
                pci.express(),
                pci.serial_number(int.from_bytes(digest[:8], "little")),
            ]
        )

    def irq_counts(self) -> tuple[int, ...]:
        """Interrupts by VFIO index: INTx, MSI, MSI-X, error, request."""
        return self._irq_counts

    def region_size(self, region: int) -> int:
        return {REGION_BAR0: pci.BAR0_SIZE, REGION_CONFIG: pci.CONFIG_SIZE}.get(region, 0)

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        """`count` bytes; the range lies within the region."""
        if region == REGION_CONFIG:
            return self._config.read(offset, count)
        return b"".join(self._read_page(at, size) for at, size in _pages(offset, count))

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        """The range lies within the region."""
        if region == REGION_CONFIG:
            if self._config.write(offset, data):
                self.reset()
            return
        for at, size in _pages(offset, len(data)):
            self._write_page(at, data[at - offset : at - offset + size])

    def reset(self, *, power_loss: bool = False) -> None:
        """Function Level Reset: the controller's, and every register back to its first value.

        power_loss: the client is gone, and with it what powered the device.
        """
        self._config.reset()
        self._msix.reset()
        self._controller.reset(power_loss=power_loss)

    def _read_page(self, offset: int, count: int) -> bytes:
        if offset in pci.REGISTERS:
            return self._controller.read_register(offset, count)
        if offset in pci.MSIX_TABLE:
            return self._msix.read(offset - pci.MSIX_TABLE.start, count)
        return bytes(count)

    def _write_page(self, offset: int, data: bytes) -> None:
        if offset in pci.REGISTERS:
            self._write_registers(offset, data)
        elif offset in pci.DOORBELLS:
            self._engine.doorbell_write(offset, data)
        elif offset in pci.MSIX_TABLE:
            self._msix.write(offset - pci.MSIX_TABLE.start, data)

    def _write_registers(self, offset: int, data: bytes) -> None:
        """Hosts write 4 or 8 aligned bytes (NVM Express over PCIe Transport, 3.1); longer writes
        are taken as a run of those, others have no effect."""
        if offset % 4 or len(data) % 4:
            return
        if len(data) == 8:
            self._controller.write_register(offset, data)
            return
        for at in range(0, len(data), 4):
            self._controller.write_register(offset + at, data[at : at + 4])


def _pages(offset: int, count: int) -> list[tuple[int, int]]:
    """Cut a range at page boundaries: (offset, size)."""
    cuts = [offset, *range(offset // PAGE * PAGE + PAGE, offset + count, PAGE), offset + count]
    return [(start, end - start) for start, end in itertools.pairwise(cuts) if end > start]
