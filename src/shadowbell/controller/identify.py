"""The Identify command and what the controller says of itself (Base 2.0, section 5.17).

Doesn't implement NVM Sets, endurance groups, namespace management and virtualization (the CNS
values of these fail with Invalid Field).
"""

from __future__ import annotations

from shadowbell import __version__
from shadowbell.nvme import Cns
from shadowbell.nvme.identify import IDENTIFY_SIZE, CommandSetVectors
from shadowbell.nvme.identify_controller import (
    ControllerType,
    Ctratt,
    IdentifyController,
    IdentifyControllerNvm,
    Lpa,
    Nwpc,
    Oacs,
    Oaes,
    Oncs,
    Sgls,
    Vwc,
)
from shadowbell.nvme.identify_namespace import IdentifyNamespaceNvm
from shadowbell.nvme.ids import (
    NQN_PREFIX,
    PCI_SUBSYSTEM_VENDOR_ID,
    PCI_VENDOR_ID,
)
from shadowbell.nvme.opcodes import CommandSet
from shadowbell.nvme.registers import VERSION_2_0_0

from . import error_log, events, health
from .command import Command, invalid_field
from .namespaces import MAX_NAMESPACES, NamespaceTable, invalid_namespace

CONTROLLER_ID = 1
ANY_CONTROLLER = 0xFFFF
MDTS = 8
"""Transfers of up to 2^8 pages of 4 KiB: 1 MiB."""
MAX_TRANSFER = 4096 << MDTS
ABORT_LIMIT = 4
"""Abort commands that a host may have outstanding: ACL + 1."""

_POWER_CENTIWATTS = 2500
_SHUTDOWN_MICROSECONDS = 30_000_000  # hosts wait this long while all data is flushed
_NQN_MAX = 223


def identify_controller(
    serial: str, model: str, *, dbbuf: bool, namespaces: NamespaceTable
) -> IdentifyController:
    """Identify CNS 01h. ValueError when `serial` (20) or `model` (40 ASCII characters) is long."""
    data = IdentifyController()
    data.vid = PCI_VENDOR_ID
    data.ssvid = PCI_SUBSYSTEM_VENDOR_ID
    data.sn = serial
    data.mn = model
    data.fr = firmware_revision()
    data.rab = 6
    data.mdts = MDTS
    data.cntlid = CONTROLLER_ID
    data.ver = VERSION_2_0_0
    data.rtd3r = 1_000_000
    data.rtd3e = _SHUTDOWN_MICROSECONDS
    data.oaes = Oaes.NAMESPACE_ATTRIBUTE_NOTICES
    data.ctratt = Ctratt.HOST_IDENTIFIER_128_BIT
    data.cntrltype = ControllerType.IO
    data.oacs = Oacs.DOORBELL_BUFFER_CONFIG if dbbuf else 0
    data.acl = ABORT_LIMIT - 1
    data.aerl = events.LIMIT - 1
    data.frmw = 0b011  # one firmware slot, read-only
    data.lpa = Lpa.COMMANDS_SUPPORTED_AND_EFFECTS | Lpa.EXTENDED_DATA | Lpa.SUPPORTED_LOG_PAGES
    data.elpe = error_log.ENTRIES - 1
    data.wctemp = health.WARNING_KELVINS
    data.cctemp = health.CRITICAL_KELVINS
    data.tnvmcap = sum(namespace.blocks * namespace.lba for namespace in namespaces)
    data.sqes = 0x66
    data.cqes = 0x44
    data.nn = data.mnan = MAX_NAMESPACES
    data.oncs = (
        Oncs.COMPARE
        | Oncs.DATASET_MANAGEMENT
        | Oncs.WRITE_ZEROES
        | Oncs.SAVE_SELECT
        | Oncs.TIMESTAMP
        | Oncs.VERIFY
    )
    # One block is kept whole: docs/storage.md. No fused Compare and Write.
    data.awun = data.awupf = data.acwu = 0
    # Also without a file: one can be added while the host runs.
    data.vwc = Vwc.PRESENT | Vwc.FLUSH_ALL_SUPPORTED
    data.nwpc = Nwpc.WRITE_PROTECT | Nwpc.UNTIL_POWER_CYCLE
    data.sgls = Sgls.SUPPORTED
    # Room for every byte of a serial number; an NQN has no spaces.
    data.subnqn = (NQN_PREFIX + serial.strip().replace(" ", "-"))[:_NQN_MAX]
    state = data.psd[0]
    state.mp = _POWER_CENTIWATTS
    return data


def firmware_revision() -> str:
    """Eight characters at most: our version."""
    return __version__[:8]


class Identify:
    """The Identify command for one controller."""

    def __init__(self, serial: str, model: str, *, dbbuf: bool, namespaces: NamespaceTable) -> None:
        self._serial = serial
        self._model = model
        self._dbbuf = dbbuf
        self._namespaces = namespaces
        self._controller()  # a serial or a model that can't be reported fails here

    def data(self, command: Command) -> bytes:
        """The 4096 bytes that the command asks for; CommandError when there are none."""
        nsid = command.sqe.nsid
        match command.bits(10, 7, 0):
            case Cns.NAMESPACE:
                active = self._namespaces.active(nsid)
                return bytes(active.identify()) if active else bytes(IDENTIFY_SIZE)
            case Cns.CONTROLLER:
                return bytes(self._controller())
            case Cns.ACTIVE_NAMESPACE_LIST:
                return bytes(self._namespaces.active_list(nsid))
            case Cns.NAMESPACE_IDENTIFICATION_DESCRIPTORS:
                active = self._namespaces.active(nsid)
                if active is None:
                    raise invalid_namespace()
                return active.identification_descriptors()
            case Cns.IO_COMMAND_SET_NAMESPACE:
                _require_nvm(command)
                # Active or not: without metadata and protection information it is all zero.
                self._namespaces.active(nsid)
                return bytes(IdentifyNamespaceNvm())
            case Cns.IO_COMMAND_SET_CONTROLLER:
                _require_nvm(command)
                return bytes(IdentifyControllerNvm())
            case Cns.IO_COMMAND_SET_ACTIVE_NAMESPACE_LIST:
                _require_nvm(command)
                return bytes(self._namespaces.active_list(nsid))
            case Cns.IO_COMMAND_SET_INDEPENDENT_NAMESPACE:
                active = self._namespaces.active(nsid)
                return bytes(active.identify_independent()) if active else bytes(IDENTIFY_SIZE)
            case Cns.IO_COMMAND_SET:
                if command.bits(10, 31, 16) not in (CONTROLLER_ID, ANY_CONTROLLER):
                    raise invalid_field(10, 16)
                vectors = CommandSetVectors()
                vectors.vectors[0] = 1 << CommandSet.NVM
                return bytes(vectors)
        raise invalid_field(10)

    def _controller(self) -> IdentifyController:
        return identify_controller(
            self._serial, self._model, dbbuf=self._dbbuf, namespaces=self._namespaces
        )


def _require_nvm(command: Command) -> None:
    """Raise CommandError unless CSI names the NVM Command Set, our only one."""
    if command.bits(11, 31, 24) != CommandSet.NVM:
        raise invalid_field(11, 24)
