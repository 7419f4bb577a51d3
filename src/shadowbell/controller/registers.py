"""The registers of BAR0 and the controller's state machine (Base 2.0, sections 3.1.3, 3.5, 3.6).

INTMS and INTMC keep their mask and mask nothing: with MSI-X a host may not use them, and the data
plane signals MSI as it signals MSI-X.
"""

from __future__ import annotations

from typing import Protocol

from shadowbell.nvme.registers import (
    NSSR_MAGIC,
    REGISTERS_SIZE,
    VERSION_2_0_0,
    AdminQueueAttributes,
    Capabilities,
    CommandSetSelected,
    CommandSetsSupported,
    ControllerConfiguration,
    ControllerStatus,
    Register,
    ShutdownNotification,
    ShutdownStatus,
)

MQES = 4095
"""Maximum Queue Entries Supported, 0's based."""
TIMEOUT_500MS = 60
"""CAP.TO and CRTO.CRWMT: worst time to become ready or to end the commands under way."""

_AQA_MASK = 0x0FFF0FFF
_QUEUE_BASE_MASK = 0xFFFFF000
_CC_MASK = 0x00FFFFF1
# Fields that a host may change only while the controller is disabled: CSS, MPS and AMS.
_CC_FROZEN_MASK = 0x00003FF0


class Lifecycle(Protocol):
    """What the registers ask of the controller."""

    def enable(self, asq: int, asq_entries: int, acq: int, acq_entries: int) -> None:
        """Open the admin queues; ValueError when they can't work."""

    def disable(self) -> None:
        """Controller Level Reset of all that is no register."""

    def begin_shutdown(self) -> None:
        """Start to flush all data."""

    def shutdown_done(self) -> bool:
        """Whether all data is flushed."""

    def subsystem_reset(self) -> None:
        """NVM Subsystem Reset was asked for; calls `reset` of these registers."""


def capabilities() -> Capabilities:
    """CAP: contiguous queues of up to 4096 entries, 4 KiB pages, the NVM Command Set."""
    cap = Capabilities()
    cap.mqes = MQES
    cap.cqr = 1
    cap.to = TIMEOUT_500MS
    cap.nssrs = 1
    cap.css = CommandSetsSupported.NVM | CommandSetsSupported.IO_COMMAND_SETS
    cap.crwms = 1
    return cap


class Registers:
    """The first 4096 bytes of BAR0. Reserved and unsupported registers read zero."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._image = memoryview(bytearray(REGISTERS_SIZE))
        self._put(Register.CAP, int(capabilities()), 8)
        self._put(Register.VS, VERSION_2_0_0)
        self._put(Register.CRTO, TIMEOUT_500MS)
        self.cc = ControllerConfiguration.over(self._image[Register.CC :])
        self.csts = ControllerStatus.over(self._image[Register.CSTS :])
        self._aqa = AdminQueueAttributes.over(self._image[Register.AQA :])

    @property
    def ready(self) -> bool:
        """Whether commands are processed."""
        return bool(self.csts.rdy and not self.csts.cfs)

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`; zeros beyond the registers."""
        if self.csts.shst == ShutdownStatus.PROCESSING and self._lifecycle.shutdown_done():
            self.csts.shst = ShutdownStatus.COMPLETE
        return bytes(self._image[offset : offset + length]).ljust(length, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """Write `data` at `offset`, dword by dword; what is reserved or read-only stays.

        A write of part of a dword keeps a register's other bytes.
        """
        end = min(offset + len(data), REGISTERS_SIZE)
        for at in range(offset & ~3, end, 4):
            first, last = max(at, offset), min(at + 4, end)
            # Registers whose written ones act must not see bits that nobody wrote.
            keep = at not in (Register.INTMS, Register.INTMC, Register.CSTS, Register.NSSR)
            merged = bytearray(self._image[at : at + 4] if keep else 4)
            merged[first - at : last - at] = data[first - offset : last - offset]
            self._write_dword(at, int.from_bytes(merged, "little"))

    def reset(self, *, subsystem: bool = False) -> None:
        """Every register to its default, as any reset but CC.EN = 0 does (section 3.7.2)."""
        for at, size in ((Register.CC, 4), (Register.AQA, 4), (Register.ASQ, 8), (Register.ACQ, 8)):
            self._put(at, 0, size)
        self._reset_status()
        self.csts.nssro = int(subsystem)

    def fail(self) -> None:
        """Controller Fatal Status: nothing but a reset helps (section 9.5)."""
        self.csts.cfs = 1

    def _reset_status(self) -> None:
        nssro = self.csts.nssro
        self._put(Register.CSTS, 0)
        self.csts.nssro = nssro
        self._put(Register.INTMS, 0)
        self._put(Register.INTMC, 0)

    def _put(self, at: int, value: int, size: int = 4) -> None:
        self._image[at : at + size] = value.to_bytes(size, "little")

    def _get(self, at: int, size: int = 4) -> int:
        return int.from_bytes(self._image[at : at + size], "little")

    def _write_dword(self, at: int, value: int) -> None:
        match at:
            case Register.CC:
                self._write_cc(ControllerConfiguration(value & _CC_MASK))
            case Register.CSTS:
                if ControllerStatus(value).nssro:
                    self.csts.nssro = 0
            case Register.NSSR:
                if value == NSSR_MAGIC:
                    self._lifecycle.subsystem_reset()
            case Register.INTMS | Register.INTMC:
                mask = self._get(Register.INTMS)
                mask = mask | value if at == Register.INTMS else mask & ~value
                self._put(Register.INTMS, mask)
                self._put(Register.INTMC, mask)
            case Register.AQA:
                self._put(at, value & _AQA_MASK)
            case Register.ASQ | Register.ACQ:
                self._put(at, value & _QUEUE_BASE_MASK)
            case 0x2C | 0x34:  # the upper halves of ASQ and ACQ
                self._put(at, value)

    def _write_cc(self, new: ControllerConfiguration) -> None:
        old = ControllerConfiguration(int(self.cc))
        value = int(new)
        if old.en and new.en:
            value = value & ~_CC_FROZEN_MASK | int(old) & _CC_FROZEN_MASK
        self.cc.value = value
        if old.en and not new.en:
            self._lifecycle.disable()
            self._reset_status()
        elif new.en and not old.en:
            self._enable()
        asked = new.shn in (ShutdownNotification.NORMAL, ShutdownNotification.ABRUPT)
        if asked and self.csts.shst == ShutdownStatus.NORMAL_OPERATION:
            self._lifecycle.begin_shutdown()
            self.csts.shst = ShutdownStatus.PROCESSING

    def _enable(self) -> None:
        """CC.EN 0 to 1: ready, or fatal when the host's configuration isn't supported."""
        self.csts.shst = ShutdownStatus.NORMAL_OPERATION
        supported = (
            self.cc.css in (CommandSetSelected.NVM, CommandSetSelected.ALL_SUPPORTED)
            and self.cc.mps == 0
            and self.cc.ams == 0
            and self._aqa.asqs > 0
            and self._aqa.acqs > 0
        )
        if not supported:
            self.fail()
            return
        asq, acq = self._get(Register.ASQ, 8), self._get(Register.ACQ, 8)
        try:
            self._lifecycle.enable(asq, self._aqa.asqs + 1, acq, self._aqa.acqs + 1)
        except ValueError:
            self.fail()
        else:
            self.csts.rdy = 1
