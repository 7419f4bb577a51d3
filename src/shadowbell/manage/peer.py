"""What can be learnt of the process at the other end of a socket."""

from __future__ import annotations

import os
import select
import socket
import struct

_UCRED = struct.Struct("iII")


def peer_pid(client: socket.socket) -> int:
    """The process that connected; 0 when it lives in a process namespace we can't see."""
    raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, _, _ = _UCRED.unpack(raw)
    return int(pid)


def has_hung_up(client: socket.socket) -> bool:
    """Whether the peer has closed, without reading what it may have sent before."""
    poller = select.poll()
    poller.register(client, select.POLLRDHUP)
    gone = select.POLLRDHUP | select.POLLHUP | select.POLLERR
    return any(events & gone for _, events in poller.poll(0))


def maps_privately(pid: int, fd: int) -> bool | None:
    """Whether the process maps the file of our descriptor `fd` only privately (share=off).

    None when it doesn't map it, or we may not look.
    """
    status = os.fstat(fd)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    inode = str(status.st_ino)
    found = None
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
            for line in maps:
                fields = line.split(None, 5)
                if len(fields) > 4 and fields[3] == device and fields[4] == inode:
                    if fields[1][3] == "s":
                        return False
                    found = True
    except OSError:
        return None
    return found
