"""The NVM Express specification as data: opcodes, status codes, registers and structures.

Sources: NVM Express Base Specification 2.0, NVM Command Set Specification 1.0 and NVMe over PCIe
Transport Specification 1.0. Names are the specification's. Nothing here does I/O, and nothing here
imports the rest of shadowbell, so that the controller and the driver share facts and no code.
"""

from .commands import (
    CQE_SIZE,
    NSID_ALL,
    SQE_SIZE,
    CompletionEntry,
    Psdt,
    QueueFlags,
    ReadWrite,
    SubmissionEntry,
)
from .events import EventType
from .features import Feature
from .identify import Cns
from .identify_controller import IdentifyController
from .identify_namespace import IdentifyNamespace
from .logs import LogPage
from .opcodes import AdminOpcode, CommandSet, IoOpcode
from .registers import Register
from .status import Status

__all__ = [
    "CQE_SIZE",
    "NSID_ALL",
    "SQE_SIZE",
    "AdminOpcode",
    "Cns",
    "CommandSet",
    "CompletionEntry",
    "EventType",
    "Feature",
    "IdentifyController",
    "IdentifyNamespace",
    "IoOpcode",
    "LogPage",
    "Psdt",
    "QueueFlags",
    "ReadWrite",
    "Register",
    "Status",
    "SubmissionEntry",
]
