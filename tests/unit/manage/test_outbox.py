"""Replies to a client that doesn't read, whole and in order, with their descriptors."""

import os
import socket

from shadowbell.manage.outbox import Outbox


def test_a_slow_client_gets_everything() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    outbox = Outbox(ours)
    sent = 0
    while not outbox.waiting:
        outbox.send(bytes([sent % 251]) * 1000, ())
        sent += 1
    got = bytearray()
    while len(got) < 1000 * sent:
        got += theirs.recv(1 << 20)
        if outbox.waiting:
            outbox.flush()
    assert got == b"".join(bytes([i % 251]) * 1000 for i in range(sent))
    ours.close()
    theirs.close()


def test_descriptors_arrive_once_even_when_late() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    outbox = Outbox(ours)
    filler = 0
    while True:
        try:
            filler += ours.send(bytes(4096))
        except BlockingIOError:
            break
    mine = os.eventfd(0)
    before = len(os.listdir("/proc/self/fd"))
    outbox.send(b"reply", (mine,))
    assert outbox.waiting
    os.eventfd_write(mine, 7)
    while filler:
        filler -= len(theirs.recv(min(filler, 1 << 16)))
    outbox.flush()
    assert not outbox.waiting
    data, fds, _, _ = socket.recv_fds(theirs, 100, 4)
    assert data == b"reply"
    assert [os.eventfd_read(fd) for fd in fds] == [7]
    for fd in fds:
        os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(mine)
    ours.close()
    theirs.close()


def test_what_a_gone_client_left_is_closed() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    outbox = Outbox(ours)
    while not outbox.waiting:
        outbox.send(bytes(4096), ())
    theirs.recv(1 << 20)
    outbox.flush()
    before = len(os.listdir("/proc/self/fd"))
    mine = os.eventfd(0)
    while not outbox.waiting:
        outbox.send(bytes(4096), (mine,))
    outbox.close_fds()
    os.close(mine)
    ours.close()
    theirs.close()
    assert len(os.listdir("/proc/self/fd")) == before - 2
