"""What the kernel tells of the other end."""

import mmap
import os
import socket

import pytest

from shadowbell.manage.peer import has_hung_up, maps_privately, peer_pid


def test_pid_and_hang_up() -> None:
    ours, theirs = socket.socketpair()
    assert peer_pid(ours) == os.getpid()
    theirs.send(b"last words")
    assert not has_hung_up(ours)
    theirs.close()
    assert has_hung_up(ours)
    assert ours.recv(100) == b"last words"
    ours.close()


@pytest.mark.parametrize(
    ("flags", "private"), [(mmap.MAP_SHARED, False), (mmap.MAP_PRIVATE, True), (None, None)]
)
def test_how_memory_is_mapped(flags: int | None, private: bool | None) -> None:
    fd = os.memfd_create("guest")
    os.truncate(fd, 1 << 20)
    mapping = mmap.mmap(fd, 1 << 20, flags=flags) if flags is not None else None
    if mapping is None:
        assert maps_privately(os.getpid(), fd) is None
    else:
        # mmap.mmap keeps a descriptor, not a mapping, of its own.
        assert maps_privately(os.getpid(), fd) is private
        mapping.close()
    os.close(fd)


def test_processes_we_may_not_look_into() -> None:
    fd = os.memfd_create("guest")
    assert maps_privately(2**22 + 1, fd) is None
    os.close(fd)
