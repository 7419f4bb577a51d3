"""The client's socket: doorbell writes on the IOThread, all else in order for the control plane."""

import array
import os
import socket
import struct
import time

import pytest
from dataplane_host import PAGE, READ, Host, Queue, sqe, wait_until


def message(
    payload: bytes = b"", command: int = 9, ident: int = 1, size: int | None = None
) -> bytes:
    size = 16 + len(payload) if size is None else size
    return struct.pack("<HHIII", ident, command, size, 0, 0) + payload


def send(host: Host, data: bytes, *fds: int) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    assert host.socket.sendmsg([data], rights) == len(data)


def same_file(a: int, b: int) -> bool:
    return os.path.samestat(os.fstat(a), os.fstat(b))


def close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def test_a_message_is_handed_over_whole(host: Host) -> None:
    whole = message(b"payload")
    send(host, whole)
    assert host.notified()
    assert host.next_message() == (whole, [])
    assert host.engine.next_message() is None
    host.engine.clear_notify()
    assert not host.notified(0.02)
    host.engine.resume_channel()
    send(host, whole)
    assert host.next_message() == (whole, [])


def test_messages_split_at_every_byte(host: Host, disk: Queue) -> None:
    """A doorbell write between two messages, cut everywhere: order and contents stay."""
    buffer = host.take(PAGE)
    first, last = message(b"first", ident=1), message(b"the last one", ident=2)
    for cut in range(1, len(first) + 36 + len(last)):
        disk.put(sqe(READ, cid=cut, prp1=buffer))
        stream = first + host.message(8, disk.tail) + last
        host.socket.send(stream[:cut])
        if cut % 3 == 0:
            time.sleep(0.0005)
        host.socket.send(stream[cut:])
        assert host.next_message() == (first, [])
        assert host.next_message() == (last, [])
        completion = disk.wait()  # rings, too, while the control plane has the channel
        assert (completion.cid, completion.status) == (cut, 0)
        wait_until(lambda: host.engine.next_message() is None)
        host.engine.resume_channel()


def test_descriptors_come_with_their_message(host: Host) -> None:
    with open(os.devnull) as null, open("/dev/zero") as zero:
        send(host, message(b"a") + host.message(0, 0))
        send(host, message(b"b"), null.fileno())
        send(host, message(b"c"))
        send(host, message(b"d"), zero.fileno(), null.fileno())
        send(host, message(b"e"))
        got = [host.next_message() for _ in range(5)]
        assert [m[16:] for m, _ in got] == [b"a", b"b", b"c", b"d", b"e"]
        assert [len(fds) for _, fds in got] == [0, 1, 0, 2, 0]
        assert same_file(got[1][1][0], null.fileno())
        assert same_file(got[3][1][0], zero.fileno())
        assert same_file(got[3][1][1], null.fileno())
        for _, fds in got:
            close_all(fds)


@pytest.mark.parametrize("cut", [1, 8, 15, 16, 17, 20])
def test_descriptors_of_a_message_in_pieces(host: Host, cut: int) -> None:
    """They come with its first byte; the next message's must not be mixed with them."""
    with open(os.devnull) as null, open("/dev/zero") as zero:
        first, second = message(b"first"), message(b"second")
        send(host, first[:cut], null.fileno())
        time.sleep(0.005)
        send(host, first[cut:])
        send(host, second, zero.fileno())
        for whole, file in ((first, null), (second, zero)):
            data, fds = host.next_message()
            assert data == whole
            assert len(fds) == 1
            assert same_file(fds[0], file.fileno())
            close_all(fds)


def test_a_doorbell_before_descriptors_is_still_a_doorbell(host: Host, disk: Queue) -> None:
    with open(os.devnull) as null:
        disk.put(sqe(READ, cid=7, prp1=host.take(PAGE)))
        host.engine.close_channel()  # so that one read takes both
        send(host, host.message(8, disk.tail))
        send(host, message(b"x"), null.fileno())
        host.engine.open_channel(host.served.fileno())
        data, fds = host.next_message()
        assert data[16:] == b"x"
        close_all(fds)
        assert disk.wait().cid == 7
        assert host.ledger(1).doorbells >= 1


def test_many_descriptors(host: Host) -> None:
    with open(os.devnull) as null:
        send(host, message(b"x"), *[null.fileno()] * 64)
        _, fds = host.next_message()
        assert len(fds) == 64
        close_all(fds)


@pytest.mark.parametrize("pieces", [(65,), (1, 64), (63, 2), (64, 1), (1, 253), (253,)])
def test_too_many_descriptors_end_the_client(host: Host, pieces: tuple[int, ...]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with open(os.devnull) as null:
        whole = message(b"0123456789")
        for i, count in enumerate(pieces):
            part = whole[i : i + 1] if i + 1 < len(pieces) else whole[i:]
            send(host, part, *[null.fileno()] * count)
        with pytest.raises(EOFError, match="long"):
            host.next_message()
    host.engine.close_channel()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("size", [0, 1, 15, 131073, 0xFFFFFFFF])
def test_sizes_that_cant_be(host: Host, size: int) -> None:
    send(host, message(size=size))
    with pytest.raises(ValueError, match="stream"):
        host.next_message()


def test_the_largest_message(host: Host) -> None:
    payload = os.urandom(131072 - 16)
    host.socket.setblocking(True)
    for _ in range(3):
        host.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        host.socket.sendall(b"" + message(payload))
        data, _ = host.next_message()
        assert data == message(payload)
        host.engine.resume_channel()


def test_the_end_comes_after_what_was_sent(host: Host) -> None:
    send(host, message(b"x"))
    send(host, message(b"cut off")[:-1])
    host.socket.close()
    assert host.next_message()[0][16:] == b"x"
    with pytest.raises(EOFError):
        host.next_message()
    host.engine.close_channel()
    assert host.engine.next_message() is None


def test_waiting_descriptors_are_closed_with_the_channel(host: Host) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with open(os.devnull) as null:
        send(host, message(b"x")[:-1], null.fileno())
        wait_until(lambda: len(os.listdir("/proc/self/fd")) == before + 2)
    host.engine.close_channel()
    assert len(os.listdir("/proc/self/fd")) == before


def test_posted_doorbells_are_never_answered(host: Host, disk: Queue) -> None:
    assert disk.run(sqe(READ, prp1=host.take(PAGE))).status == 0
    host.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        host.socket.recv(1)


def test_synchronous_doorbells_are_answered(host: Host, disk: Queue) -> None:
    disk.put(sqe(READ, prp1=host.take(PAGE)))
    host.socket.send(host.message(8, disk.tail, flags=0))
    host.socket.settimeout(5)
    reply = host.socket.recv(100)
    ident, command, size, flags, error = struct.unpack_from("<HHIII", reply)
    assert (ident, command, size, flags, error) == (host.messages, 10, 32, 1, 0)
    assert struct.unpack_from("<QII", reply, 16) == (0x1008, 0, 4)
    assert len(reply) == 32
    assert disk.wait().status == 0


@pytest.mark.parametrize(
    ("offset", "region", "count", "command", "flags"),
    [
        (0x0FFC, 0, 4, 10, 0x10),  # below the doorbells
        (0x2000, 0, 4, 10, 0x10),  # behind them
        (0x1002, 0, 4, 10, 0x10),  # unaligned
        (0x1008, 1, 4, 10, 0x10),  # another region
        (0x1008, 0, 8, 10, 0x10),  # another size than the message says
        (0x1008, 0, 4, 9, 0x10),  # a read
        (0x1008, 0, 4, 10, 0x11),  # a reply
        ((1 << 64) - 8, 0, 4, 10, 0x10),
    ],
)
def test_all_other_writes_are_the_control_planes(
    host: Host, offset: int, region: int, count: int, command: int, flags: int
) -> None:
    data = struct.pack("<HHIIIQIII", 1, command, 36, flags, 0, offset, region, count, 1)
    host.socket.send(data)
    assert host.next_message() == (data, [])
    assert host.engine.take_events() == []


def test_doorbell_writes_that_came_another_way(host: Host, disk: Queue) -> None:
    other = host.queue(2)
    buffer = host.take(PAGE)
    disk.put(sqe(READ, cid=1, prp1=buffer))
    other.put(sqe(READ, cid=2, prp1=buffer))
    # Tail 1, head 1, tail 2 in one write: the head isn't one that can be, yet it is in range.
    host.engine.doorbell_write(0x1008, struct.pack("<III", 1, 0, 1))
    assert disk.wait().cid == 1
    assert other.wait().cid == 2
    for offset, data in ((0x0FF8, b"\1" * 4), (0x1009, b"\1" * 4), (0x1008, b"\1\1\1")):
        host.engine.doorbell_write(offset, data)
    host.engine.doorbell_write(0x1FFC, b"\1" * 64)
    (event,) = host.events()
    assert event.kind == "invalid-doorbell-register"


def test_a_second_client_must_wait(host: Host) -> None:
    with pytest.raises(RuntimeError, match="client"):
        host.engine.open_channel(host.served.fileno())
    host.engine.close_channel()
    host.engine.open_channel(host.served.fileno())
    send(host, message(b"again"))
    assert host.next_message()[0][16:] == b"again"
