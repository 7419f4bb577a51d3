"""The guest's code, assembled by hand: 32-bit protected mode, flat, no stack.

Source of the encodings: Intel SDM volume 2. Numbers after a byte string are 32-bit little-endian
immediates or addresses; a label after it is a relative jump.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

CODE: Final = 0x1000
"""Where a guest's code begins. It may lie anywhere: all of its jumps are relative."""
PATIENCE: Final = 1 << 26
"""Looks at a completion queue's next entry before the guest gives up: seconds."""


class Code:
    """Bytes with labels. ``jump`` takes a 32-bit displacement, so that nothing is out of reach."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []

    def put(self, opcode: str, *values: int) -> None:
        self._bytes += bytes.fromhex(opcode)
        for value in values:
            self._bytes += struct.pack("<I", value & 0xFFFFFFFF)

    def label(self, name: str) -> None:
        self._labels[name] = len(self._bytes)

    def jump(self, opcode: str, name: str) -> None:
        self._bytes += bytes.fromhex(opcode) + bytes(4)
        self._jumps.append((len(self._bytes), name))

    def assemble(self) -> bytes:
        for end, name in self._jumps:
            struct.pack_into("<i", self._bytes, end - 4, self._labels[name] - end)
        return bytes(self._bytes)


JMP, JNE, JE, JAE = "e9", "0f85", "0f84", "0f83"
MFENCE = "0faef0"
HLT = "f4"


def write_values(address: int, values: list[int]) -> bytes:
    """Write 32-bit values to one address, one after the other, and halt."""
    code = Code()
    for value in values:
        code.put("c705", address, value)  # mov dword [address], value
    code.put(HLT)
    return code.assemble()


@dataclass(frozen=True)
class Places:
    """Guest-physical addresses of what the miniature driver uses."""

    sq: int
    cq: int
    data: int  # where a read puts its block: the first dword is the block's number
    tail_shadow: int
    tail_event: int
    head_shadow: int
    head_event: int
    tail_doorbell: int
    head_doorbell: int
    completed: int  # counters for the host to read
    rings: int


def driver(places: Places, entries: int, commands: int, *, shadowed: bool) -> bytes:
    """An NVMe driver in miniature: read blocks ``commands``..1, one at a time, and check each.

    Registers: ebx tail, esi head, edi phase, ebp block and commands left. The queue's entries hold
    the parts of the command that never change. ``shadowed``: store the doorbell to memory and write
    the register only when the update passes EventIdx; else write it each time. Halts when all is
    done, when a command fails, or when a completion doesn't come.
    """
    code = Code()
    code.put("31db")  # xor ebx, ebx
    code.put("31f6")  # xor esi, esi
    code.put("bf", 1)  # mov edi, 1
    code.put("bd", commands)  # mov ebp, commands
    code.label("next")
    code.put("89d8 c1e006 05", places.sq)  # eax = sq + 64 * tail
    code.put("89da c1e210 83ca02 8910")  # dword 0: opcode 02h, Read; CID: the slot's number
    code.put("896828")  # mov [eax + 40], ebp: dword 10, the first block
    code.put("89d9")  # mov ecx, ebx: the old tail
    code.put("43 81fb", entries)  # inc ebx; cmp ebx, entries
    code.jump(JNE, "tail")
    code.put("31db")  # xor ebx, ebx: wrap
    code.label("tail")
    _ring(code, "tail", 0x1D, "89d8", "89da", places, shadowed)

    code.put("b9", PATIENCE)  # mov ecx, patience
    code.label("wait")
    code.put("89f2 c1e204 8b82", places.cq + 12)  # eax = dword 3 of entry esi
    code.put("c1e810 31f8 a801")  # shr eax, 16; xor eax, edi; test al, 1: our phase?
    code.jump(JE, "done")
    code.put("f390 49")  # pause; dec ecx
    code.jump(JNE, "wait")
    code.jump(JMP, "end")

    code.label("done")
    code.put("a9", 0xFFFE)  # test eax, fffeh: the status field
    code.jump(JNE, "end")
    code.put("392d", places.data)  # cmp [data], ebp: the block that we asked for?
    code.jump(JNE, "end")
    code.put("ff05", places.completed)  # inc dword [completed]
    code.put("89f1")  # mov ecx, esi: the old head
    code.put("46 81fe", entries)  # inc esi; cmp esi, entries
    code.jump(JNE, "head")
    code.put("31f6 83f701")  # xor esi, esi; xor edi, 1: wrap, the phase turns
    code.label("head")
    _ring(code, "head", 0x35, "89f0", "89f2", places, shadowed)
    code.put("4d")  # dec ebp
    code.jump(JNE, "next")
    code.label("end")
    code.put(HLT)
    return code.assemble()


def _ring(
    code: Code, which: str, modrm: int, to_eax: str, to_edx: str, places: Places, shadowed: bool
) -> None:
    """Tell the device of the new value (in the register that ``modrm`` stores); ecx is the old."""
    store = f"89{modrm:02x}"  # mov [address], ebx or esi
    if shadowed:
        code.put(store, getattr(places, f"{which}_shadow"))
        code.put(MFENCE)  # the store before the load; the device does the reverse
        code.put(f"{to_eax} 2b05", getattr(places, f"{which}_event"))  # eax = new - EventIdx
        code.put(f"48 {to_edx} 29ca")  # dec eax; edx = new - old
        code.put("6639d0")  # cmp ax, dx: Linux' comparison, in 16 bits
        code.jump(JAE, f"{which} quiet")
    code.put(store, getattr(places, f"{which}_doorbell"))
    code.put("ff05", places.rings)  # inc dword [rings]
    code.label(f"{which} quiet")
