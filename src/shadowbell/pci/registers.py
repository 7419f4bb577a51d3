"""PCI names and layout, as in the PCI Local Bus and PCI Express Base specifications.

`Block` is a run of configuration registers with what they hold after a reset and which bits a guest
may write; the builders below make the capabilities of this device.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

BAR0_SIZE = 0x4000
REGISTERS = range(0x1000)
DOORBELLS = range(0x1000, 0x2000)
MSIX_TABLE = range(0x2000, 0x3000)
MSIX_PBA = range(0x3000, 0x4000)
MSIX_ENTRY_SIZE = 16
MAX_MSI_VECTORS = 32

CONFIG_SIZE = 4096

COMMAND = 0x04
COMMAND_WRITEABLE = 0x0546  # memory space, bus master, parity, SERR#, INTx disable
STATUS_CAPABILITIES = 0x0010
BAR0 = 0x10
BAR_MEMORY_64 = 0x4
CAPABILITIES = 0x34

PM = 0x40
MSI_OR_MSIX = 0x50
EXPRESS = 0x60
SERIAL_NUMBER = 0x100

CAP_PM = 0x01
CAP_MSI = 0x05
CAP_EXPRESS = 0x10
CAP_MSIX = 0x11
EXT_CAP_SERIAL_NUMBER = 0x0003

PMCSR = PM + 4
PMCSR_STATE = 0x3
PMCSR_NO_SOFT_RESET = 0x8
D0, D3HOT = 0, 3

DEVCTL = EXPRESS + 8
DEVCTL_FLR = 0x8000


@dataclass(frozen=True)
class Block:
    """Registers at `offset`: `initial` after reset, `writeable` is the mask of the same length."""

    offset: int
    initial: bytes
    writeable: bytes


def _block(offset: int, layout: str, *fields: tuple[int, int]) -> Block:
    """`fields` are (initial value, writeable bits) in the order of the struct `layout`."""
    initial = struct.pack(layout, *(value for value, _ in fields))
    return Block(offset, initial, struct.pack(layout, *(mask for _, mask in fields)))


def header(vendor: int, device: int, class_code: int, subsystem: tuple[int, int]) -> list[Block]:
    """The type 0 header: a 64-bit BAR0, no other BAR, no ROM, no interrupt pin."""
    revision = 1
    return [
        _block(0x00, "<HH", (vendor, 0), (device, 0)),
        _block(COMMAND, "<HH", (0, COMMAND_WRITEABLE), (STATUS_CAPABILITIES, 0)),
        _block(0x08, "<I", (class_code << 8 | revision, 0)),
        _block(0x0C, "<B", (0, 0xFF)),  # cache line size
        _block(BAR0, "<Q", (BAR_MEMORY_64, 2**64 - BAR0_SIZE)),
        _block(0x2C, "<HH", (subsystem[0], 0), (subsystem[1], 0)),
        _block(CAPABILITIES, "<B", (PM, 0)),
        _block(0x3C, "<BB", (0, 0xFF), (0, 0)),  # interrupt line is the guest's, pin 0 is none
    ]


def power_management() -> Block:
    """Version 3, D0 and D3hot, no PME; D3hot to D0 keeps everything (No_Soft_Reset)."""
    return _block(
        PM,
        "<BBHHH",
        (CAP_PM, 0),
        (MSI_OR_MSIX, 0),
        (3, 0),
        (PMCSR_NO_SOFT_RESET, PMCSR_STATE),
        (0, 0),
    )


def msix(vectors: int) -> Block:
    """Table and pending bits in BAR0's last two pages, which are never mapped."""
    control = (vectors - 1, 0xC000)  # enable, function mask
    return _block(
        MSI_OR_MSIX,
        "<BBHII",
        (CAP_MSIX, 0),
        (EXPRESS, 0),
        control,
        (MSIX_TABLE.start, 0),
        (MSIX_PBA.start, 0),
    )


def msi(vectors: int) -> Block:
    """64-bit addresses, no per-vector masking; `vectors` is a power of two up to 32."""
    control = (1 << 7 | (vectors.bit_length() - 1) << 1, 0x0071)  # enable, multiple messages
    return _block(
        MSI_OR_MSIX,
        "<BBHIIH",
        (CAP_MSI, 0),
        (EXPRESS, 0),
        control,
        (0, 0xFFFFFFFC),
        (0, 0xFFFFFFFF),
        (0, 0xFFFF),
    )


def express() -> Block:
    """A version 2 endpoint with Function Level Reset behind a trained 8 GT/s x4 link."""
    speed, width = 3, 4
    return _block(
        EXPRESS,
        "<BBHIHHIHHIHHIHHIHHIHH",
        (CAP_EXPRESS, 0),
        (0, 0),
        (0x0002, 0),  # version 2, endpoint
        (1 << 28 | 1 << 15, 0),  # DEVCAP: FLR, role-based errors, 128 byte payloads
        (0x2810, 0x7FFF),  # DEVCTL: 512 byte reads, relaxed ordering, no snoop; FLR reads 0
        (0, 0),
        (width << 4 | speed, 0),  # LNKCAP
        (0, 0x01FB),  # LNKCTL
        (width << 4 | speed, 0),  # LNKSTA
        *[(0, 0)] * 6,  # slot and root registers, which an endpoint hasn't
        (1 << 4, 0),  # DEVCAP2: completion timeout can be disabled
        (0, 0x001F),  # DEVCTL2
        (0, 0),
        (0x0E, 0),  # LNKCAP2: 2.5, 5 and 8 GT/s
        (speed, 0x000F),  # LNKCTL2: target speed
        (0, 0),
    )


def serial_number(number: int) -> Block:
    """Device Serial Number, the only extended capability; `number` has 64 bits."""
    return _block(SERIAL_NUMBER, "<HHQ", (EXT_CAP_SERIAL_NUMBER, 0), (0x0001, 0), (number, 0))
