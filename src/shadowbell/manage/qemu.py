"""The QEMU (>= 10.1) arguments that attach to what a configuration serves."""

import json
import os

from shadowbell.config import ServerConfig, parse_size
from shadowbell.errors import UserError

MIB = 2**20


def qemu_arguments(config: ServerConfig, *, memory: str = "4G") -> list[str]:
    """The words of the command line: shared memory of `memory` (a size), and one device a socket.

    The memory has to be shared, or the device sees other bytes than the guest. Raises UserError.
    """
    size = parse_size(memory)
    if size % MIB:
        raise UserError(f"bad memory {memory!r}: give a multiple of 1M")
    amount = f"{size // 2**30}G" if size % 2**30 == 0 else f"{size // MIB}M"
    arguments = [
        "-m",
        amount,
        "-object",
        f"memory-backend-memfd,id=mem,size={amount},share=on",
        "-machine",
        "q35,memory-backend=mem",
    ]
    for controller in config.controllers:
        path = os.path.abspath(controller.socket)
        device = {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": path}}
        arguments += ["-device", json.dumps(device, separators=(",", ":"))]
    return arguments
