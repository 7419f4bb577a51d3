"""Data pointers of a command: PRPs and SGLs (Base 2.0, sections 4.1.1 and 4.1.2)."""

import struct
from collections.abc import Sequence

from shadowbell.driver.memory import PAGE
from shadowbell.nvme.transfer import SglDescriptor, SglType

ENTRIES = PAGE // 8


def prp_pages(iova: int, length: int) -> list[int]:
    """PRP entries of a contiguous transfer: the first may have an offset into its page."""
    first = iova - iova % PAGE
    return [iova, *range(first + PAGE, iova + length, PAGE)]


def list_pages(entries: int) -> int:
    """Pages a PRP list of so many entries takes: the last slot of a full page is a pointer."""
    return 1 if entries <= ENTRIES else 1 + list_pages(entries - ENTRIES + 1)


def encode_prp_list(entries: Sequence[int], iova: int) -> bytes:
    """A PRP list that starts at ``iova`` and goes on in the pages after it, chained."""
    out = bytearray()
    at = iova
    rest = list(entries)
    while rest:
        room = (PAGE - at % PAGE) // 8
        if len(rest) <= room:
            here, rest = rest, []
        else:
            here, rest = rest[: room - 1], rest[room - 1 :]
            here.append(at - at % PAGE + PAGE)
        out += struct.pack(f"<{len(here)}Q", *here)
        at += len(here) * 8
    return bytes(out)


def descriptor(kind: SglType, address: int, length: int) -> bytes:
    """One SGL descriptor."""
    made = SglDescriptor()
    made.address, made.length, made.type = address, length, kind
    return bytes(made)


def inline_pair(data: bytes) -> tuple[int, int]:
    """A 16-byte descriptor as the two halves of the Data Pointer."""
    low, high = struct.unpack("<QQ", data)
    return low, high


def encode_sgl(parts: Sequence[tuple[int, int]], iova: int, per_segment: int = 0) -> bytes:
    """The Data Pointer's descriptor, followed by the segments it needs, which lie at ``iova``.

    ``parts`` are (address, length). One part needs no segment. ``per_segment`` limits the data
    descriptors of a segment, 0: all in one last segment.
    """
    blocks = [descriptor(SglType.DATA_BLOCK, address, length) for address, length in parts]
    if len(blocks) == 1:
        return blocks[0]
    step = per_segment or len(blocks)
    groups = [blocks[at : at + step] for at in range(0, len(blocks), step)]
    sizes = [16 * (len(group) + (group is not groups[-1])) for group in groups]
    out = b""
    at = iova
    pointers = []
    for number, size in enumerate(sizes):
        kind = SglType.LAST_SEGMENT if number == len(sizes) - 1 else SglType.SEGMENT
        pointers.append(descriptor(kind, at, size))
        at += size
    for number, group in enumerate(groups):
        out += b"".join(group) + (pointers[number + 1] if number + 1 < len(groups) else b"")
    return pointers[0] + out
