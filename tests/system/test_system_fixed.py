"""A server with registered buffers: what it tells, and what it does when it may not pin."""

import sys
import time
from pathlib import Path
from typing import Any

from serving import SOCKET, Serve
from shadowbell.cli.control import ask
from shadowbell.driver import Host, Load, LoadSpec
from shadowbell.driver.verifier import Verifier
from shadowbell.guest import Served
from shadowbell.manage.control import Status

MIB = 1 << 20
ARGUMENTS = ("--namespace", "file:{folder}/disk.img,lba=4096", "--fixed-buffers")
# Begins a program without CAP_IPC_LOCK and with little memory to lock, whoever runs this.
UNPRIVILEGED = """
import ctypes, os, resource, sys
ctypes.CDLL(None).prctl(24, 14)
resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


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
    program = [sys.executable, "-c", UNPRIVILEGED, "-m", "shadowbell", "serve"]
    served = Served([*ARGUMENTS, "--socket", f"{{folder}}/{SOCKET}"], program)
    with (served.folder / "disk.img").open("wb") as file:
        file.truncate(64 * MIB)
    with served:
        for _ in range(2):
            with Host.connect(served.socket(SOCKET)) as host:
                end = time.monotonic() + 5
                while "LimitMEMLOCK" not in served.log:
                    assert time.monotonic() < end
                    time.sleep(0.01)
                verify(host, 4096)
        status = ask(str(served.socket(SOCKET)), Status())
        assert status["fixed_transfers"] == 0
        assert served.log.count("LimitMEMLOCK") == 1
