"""A server with registered buffers: what it tells, and what it does when it may not pin."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from serving import SOCKET, Serve
from shadowbell.cli.control import ask
from shadowbell.driver import Host, Load, LoadSpec
from shadowbell.driver.verifier import Verifier
from shadowbell.guest import Served
from shadowbell.manage.control import Status
from shadowbell.nvme import IoOpcode, SubmissionEntry

MIB = 1 << 20
PAGE = 4096
ARGUMENTS = ("--namespace", "file:{folder}/disk.img,lba=4096", "--fixed-buffers")
# Begins a program without CAP_IPC_LOCK and with little memory to lock, whoever runs this.
UNPRIVILEGED = """
import ctypes, os, resource, sys
ctypes.CDLL(None).prctl(24, 14)
resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
# Begins a program that io_uring_register refuses one opcode: a seccomp filter of
# load nr; != 427: allow; load the second argument; != the opcode: allow; refuse with EINVAL; allow.
REFUSED = """
import ctypes, os, struct, sys
filter = b"".join(struct.pack("HBBI", *one) for one in [
    (0x20, 0, 0, 0), (0x15, 0, 3, 427), (0x20, 0, 0, 24), (0x15, 0, 1, int(sys.argv[1])),
    (0x06, 0, 0, 0x00050000 | 22), (0x06, 0, 0, 0x7FFF0000)])
memory = ctypes.create_string_buffer(filter)
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 6, ctypes.addressof(memory)))
prctl = ctypes.CDLL(None, use_errno=True).prctl
if prctl(38, 1, 0, 0, 0) or prctl(22, 2, program, 0, 0):
    raise OSError(ctypes.get_errno(), "seccomp")
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
# linux/io_uring.h: IORING_REGISTER_...
PROBE = 8
BUFFERS2 = 15
BUFFERS_UPDATE = 16
CLONE_BUFFERS = 30


@contextmanager
def served_by(*program: str) -> Iterator[Served]:
    served = Served(
        [*ARGUMENTS, "--socket", f"{{folder}}/{SOCKET}"],
        [sys.executable, "-c", *program, "-m", "shadowbell", "serve"],
    )
    with (served.folder / "disk.img").open("wb") as file:
        file.truncate(64 * MIB)
    with served:
        yield served


def said_when(served: Served, words: str) -> None:
    """Wait for a line of the server's log."""
    end = time.monotonic() + 5
    while words not in served.log:
        assert time.monotonic() < end, served.log
        time.sleep(0.01)


def status_when(served: Served, key: str, least: int) -> Any:
    """The status, when its number has come so far."""
    end = time.monotonic() + 10
    while (status := ask(str(served.socket(SOCKET)), Status()))[key] < least:
        assert time.monotonic() < end, status
        time.sleep(0.01)
    return status


def verify(host: Host, block_size: int) -> None:
    queue = host.create_queue_pair(64)
    verifier = Verifier(host.namespaces[1].blocks, 4096)
    spec = LoadSpec(pattern="randrw", block_size=block_size, depth=16)
    assert Load(host, [queue], spec, verifier=verifier).run(ios=2000).clean


def test_a_hosts_memory_is_registered_while_it_is_there(serve: Serve) -> None:
    served = serve(*ARGUMENTS, image=64 * MIB)
    with Host.connect(served.socket(SOCKET), arena_size=100 * MIB) as host:
        assert status_when(served, "pinned", 1)["pinned"] == host.arena.size
        verify(host, 4096)
        assert status_when(served, "fixed_transfers", 2000)["fixed_transfers"] == 2000
        verify(host, 131072)
    assert ask(str(served.socket(SOCKET)), Status())["pinned"] == 0
    end = time.monotonic() + 5
    while "VmPin:\t       0 kB" not in Path(f"/proc/{served.pid}/status").read_text():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_server_that_may_not_pin_says_what_to_do() -> None:
    with served_by(UNPRIVILEGED) as served:
        for _ in range(2):
            with Host.connect(served.socket(SOCKET)) as host:
                said_when(served, "LimitMEMLOCK")
                verify(host, 4096)
        status = ask(str(served.socket(SOCKET)), Status())
        assert status["fixed_transfers"] == 0
        assert served.log.count("LimitMEMLOCK") == 1


@pytest.mark.parametrize("opcode", [BUFFERS2, BUFFERS_UPDATE, CLONE_BUFFERS])
def test_a_kernel_that_cant_register_or_share_buffers(opcode: int) -> None:
    with served_by(REFUSED, str(opcode)) as served:
        for _ in range(2):
            with Host.connect(served.socket(SOCKET)) as host:
                said_when(served, "it needs Linux 6.13")
                verify(host, 4096)
                verify(host, 131072)
        status = ask(str(served.socket(SOCKET)), Status())
        assert (status["pinned"], status["fixed_transfers"]) == (0, 0)


def test_a_kernel_without_vectored_fixed_transfers() -> None:
    with served_by(REFUSED, str(PROBE)) as served:
        with Host.connect(served.socket(SOCKET)) as host:
            status_when(served, "pinned", 1)
            verify(host, 4096)
            assert status_when(served, "fixed_transfers", 2000)["fixed_transfers"] == 2000
            queue, pages = host.create_queue_pair(16), host.arena.allocate(2 * PAGE)
            pages.view[:] = b"b" * PAGE + b"a" * PAGE
            queue.execute(
                SubmissionEntry(
                    opcode=IoOpcode.WRITE, nsid=1, prp1=pages.iova + PAGE, prp2=pages.iova, cdw12=1
                )
            )
            pages.free()
            assert queue.read(1, 0, 2) == b"a" * PAGE + b"b" * PAGE
        # The write is of two pieces: not to such a kernel. The read is of one.
        assert ask(str(served.socket(SOCKET)), Status())["fixed_transfers"] == 2001
