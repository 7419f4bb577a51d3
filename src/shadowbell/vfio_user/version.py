"""Version negotiation: the first message of a session, both ways.

The capabilities we answer with are a subset of the client's, as the specification has it, and the
reply is never longer than the request: QEMU reads it into the request's buffer and exits when it
doesn't fit. `twin_socket` and `write_multiple` are declined by silence; QEMU 10.1 and 10.2 confuse
flags once the latter is on.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

from shadowbell.vfio_user.protocol import (
    MAX_DATA_XFER_SIZE,
    MAX_DMA_MAPS,
    MAX_MSG_FDS,
    PAGE_SIZE,
    refuse,
)

MAJOR = 0
MINOR = 1
MAX_TEXT = 1 << 16
_VERSION = struct.Struct("=HH")
OFFERED = {
    "max_msg_fds": MAX_MSG_FDS,
    "max_data_xfer_size": MAX_DATA_XFER_SIZE,
    "pgsizes": PAGE_SIZE,
    "max_dma_maps": MAX_DMA_MAPS,
}


@dataclass(frozen=True)
class Negotiated:
    """What both sides agreed on; `max_msg_fds` is what the client takes in one message."""

    minor: int
    max_msg_fds: int = 1


def negotiate(body: bytes) -> tuple[Negotiated, bytes]:
    """The agreement and the body of the reply. Raises Refused.

    Should our own figures make the reply too long, the client's smaller ones are sent instead.
    """
    major, minor, text = _split(body)
    if major != MAJOR:
        refuse(f"client speaks version {major}.{minor}, this server {MAJOR}.{MINOR}")
    minor = min(minor, MINOR)
    if not text:
        return Negotiated(minor), _join(MAJOR, minor, b"")
    proposed = _capabilities(text)
    agreed = Negotiated(minor, _number(proposed, "max_msg_fds", 1))
    for key in ("max_data_xfer_size", "pgsizes", "max_dma_maps"):
        _number(proposed, key, 1)
    answer = {key: value for key, value in OFFERED.items() if key in proposed}
    modest = {key: min(value, proposed[key]) for key, value in answer.items()}
    for capabilities in (answer, modest):
        reply = _join(MAJOR, minor, _encode(capabilities))
        if len(reply) <= len(body):
            return agreed, reply
    return agreed, _join(MAJOR, minor, b"")


def _encode(capabilities: dict[str, int]) -> bytes:
    return json.dumps({"capabilities": capabilities}, separators=(",", ":")).encode()


def _capabilities(text: bytes) -> dict[str, Any]:
    if len(text) > MAX_TEXT:
        refuse(f"VERSION with {len(text)} bytes of JSON")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        refuse("VERSION with broken JSON")
    capabilities = document.get("capabilities", {}) if isinstance(document, dict) else None
    if not isinstance(capabilities, dict):
        refuse("VERSION whose capabilities are no object")
    return capabilities


def _number(capabilities: dict[str, Any], key: str, default: int) -> int:
    value = capabilities.get(key, default)
    if type(value) is not int or value < 0:
        refuse(f"VERSION with {key} {value!r:.40}")
    return value


def _split(body: bytes) -> tuple[int, int, bytes]:
    """Major, minor and the JSON text without its NUL (empty when the client sent none)."""
    if len(body) < _VERSION.size:
        refuse(f"VERSION of {len(body)} bytes")
    major, minor = _VERSION.unpack_from(body)
    return major, minor, body[_VERSION.size :].split(b"\0", 1)[0]


def _join(major: int, minor: int, text: bytes) -> bytes:
    return _VERSION.pack(major, minor) + (text + b"\0" if text else b"")
