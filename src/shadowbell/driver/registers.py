"""Controller registers over a vfio-user connection: enable, disable, shut down."""

import time

from shadowbell.driver.client import Client
from shadowbell.driver.wire import REGION_BAR0, REGION_CONFIG
from shadowbell.nvme import Register
from shadowbell.nvme.registers import (
    AdminQueueAttributes,
    Capabilities,
    ControllerConfiguration,
    ControllerStatus,
    ShutdownNotification,
    ShutdownStatus,
)

PCI_COMMAND = 0x04
PCI_CAPABILITIES = 0x34
PCI_COMMAND_MEMORY_BUS_MASTER = 0x0006
PCI_CAPABILITY_MSIX = 0x11
MSIX_ENABLE = 0x8000


class ControllerFailed(Exception):
    """The controller is in fatal status, doesn't become ready, or lacks what a host needs."""


class Registers:
    """The controller's registers and the few of PCI configuration space that a driver sets."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.capabilities = Capabilities(self.read64(Register.CAP))
        if self.capabilities.mpsmin:
            raise ControllerFailed("the controller needs memory pages larger than 4096 bytes")

    def read32(self, offset: int) -> int:
        """Read a 32-bit register."""
        return int.from_bytes(self._client.region_read(REGION_BAR0, offset, 4), "little")

    def read64(self, offset: int) -> int:
        """Read a 64-bit register at once."""
        return int.from_bytes(self._client.region_read(REGION_BAR0, offset, 8), "little")

    def write32(self, offset: int, value: int) -> None:
        """Write a 32-bit register."""
        self._client.region_write(REGION_BAR0, offset, value.to_bytes(4, "little"))

    def write64(self, offset: int, value: int) -> None:
        """Write a 64-bit register at once."""
        self._client.region_write(REGION_BAR0, offset, value.to_bytes(8, "little"))

    @property
    def status(self) -> ControllerStatus:
        """CSTS."""
        return ControllerStatus(self.read32(Register.CSTS))

    @property
    def configuration(self) -> ControllerConfiguration:
        """CC."""
        return ControllerConfiguration(self.read32(Register.CC))

    @property
    def max_entries(self) -> int:
        """Slots of the largest I/O queue."""
        return self.capabilities.mqes + 1

    def enable_pci(self) -> None:
        """Turn on memory decoding, bus mastering and MSI-X, as an operating system does."""
        config = self._client.region_read(REGION_CONFIG, 0, 256)
        value = int.from_bytes(config[PCI_COMMAND : PCI_COMMAND + 2], "little")
        self._write_config(PCI_COMMAND, value | PCI_COMMAND_MEMORY_BUS_MASTER)
        at = config[PCI_CAPABILITIES] & 0xFC
        for _ in range(48):  # a chain can't be longer
            if at < 0x40:
                return
            if config[at] == PCI_CAPABILITY_MSIX:
                control = int.from_bytes(config[at + 2 : at + 4], "little")
                self._write_config(at + 2, control | MSIX_ENABLE)
                return
            at = config[at + 1] & 0xFC

    def _write_config(self, offset: int, value: int) -> None:
        self._client.region_write(REGION_CONFIG, offset, value.to_bytes(2, "little"))

    def _await_ready(self, ready: bool) -> None:
        # CAP.TO counts half seconds; a device that says 0 still gets some.
        end = time.monotonic() + max(1.0, self.capabilities.to / 2)
        pause = 0.0002
        while True:
            status = self.status
            if status.cfs and ready:
                raise ControllerFailed("the controller reports a fatal status (CSTS.CFS)")
            if bool(status.rdy) == ready:
                return
            if time.monotonic() > end:
                want = "ready" if ready else "disabled"
                raise ControllerFailed(f"the controller doesn't become {want}")
            time.sleep(pause)
            pause = min(pause * 2, 0.01)

    def disable(self) -> None:
        """Clear CC.EN, a Controller Level Reset, and wait until CSTS.RDY is 0."""
        configuration = self.configuration
        if configuration.en or self.status.rdy:
            configuration.en = 0
            configuration.shn = ShutdownNotification.NONE
            self.write32(Register.CC, int(configuration))
        self._await_ready(False)

    def enable(self, asq: int, acq: int, entries: int) -> None:
        """Set up the admin queue and set CC.EN; returns when CSTS.RDY is 1."""
        attributes = AdminQueueAttributes()
        attributes.asqs = attributes.acqs = entries - 1
        self.write32(Register.AQA, int(attributes))
        self.write64(Register.ASQ, asq)
        self.write64(Register.ACQ, acq)
        configuration = ControllerConfiguration()
        configuration.iosqes, configuration.iocqes = 6, 4
        self.write32(Register.CC, int(configuration))
        configuration.en = 1
        self.write32(Register.CC, int(configuration))
        self._await_ready(True)

    def shut_down(self, *, abrupt: bool = False, timeout: float = 60.0) -> None:
        """Notify of a shutdown and wait until the controller has completed it."""
        configuration = self.configuration
        configuration.shn = ShutdownNotification.ABRUPT if abrupt else ShutdownNotification.NORMAL
        self.write32(Register.CC, int(configuration))
        end = time.monotonic() + timeout
        while self.status.shst != ShutdownStatus.COMPLETE:
            if time.monotonic() > end:
                raise ControllerFailed("the controller doesn't complete its shutdown")
            time.sleep(0.001)
