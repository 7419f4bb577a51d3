"""The control socket of a running server: what it tells, refuses and bears."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from living import MIB, done, namespaces, refused

from serving import SOCKET, Attach, Serve
from shadowbell.config import ControllerConfig, ServerConfig, parse_namespace
from shadowbell.errors import UserError
from shadowbell.guest import Served
from shadowbell.manage import Server


def test_status_tells_what_is_served(serve: Serve, attach: Attach) -> None:
    served = serve("{folder}/disk.img,ro", "memory:16M,lba=4096", "--serial", "SB7", image=MIB)
    told = json.loads(done(served, "status"))
    assert (told["serial"], told["client"]) == ("SB7", None)
    assert told["namespaces"][0]["path"] == f"{served.folder}/disk.img"
    assert [each["size"] for each in told["namespaces"]] == [MIB, 16 * MIB]
    assert [each["read_only"] for each in told["namespaces"]] == [True, False]
    host = attach(served)
    host.create_queue_pair().read(1, 0, 8)
    assert json.loads(done(served, "status"))["client"] == os.getpid()
    ledger = {queue["qid"]: queue for queue in json.loads(done(served, "ledger"))}
    assert ledger[1]["commands"] == {"read": 1}
    assert ledger[1]["bytes_read"] == 4096


def test_only_its_user_may_control_it(serve: Serve) -> None:
    served = serve("memory:1M")
    mode = served.socket(f"{SOCKET}.control").stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_the_control_socket_where_it_is_wanted(serve: Serve) -> None:
    served = serve("memory:1M", "--control", "{folder}/my.control")
    assert not served.socket(f"{SOCKET}.control").exists()
    ended = subprocess.run(
        [sys.executable, "-m", "shadowbell", "control", served.socket("my.control"), "status"],
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert json.loads(ended.stdout)["socket"] == str(served.socket(SOCKET))
    served.stop()
    assert not served.socket("my.control").exists()
    served.start()


def test_no_control_socket(serve: Serve) -> None:
    served = serve("memory:1M", "--no-control")
    assert not served.socket(f"{SOCKET}.control").exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("remove-namespace", "9"), "no namespace 9"),
        (("resize", "9"), "no namespace 9"),
        (("resize", "1", "1000"), "multiple"),
        (("resize", "1", "lots"), "bad size"),
        (("resize", "1", "1P"), "can't"),
        (("add-namespace", "memory:1M", "--nsid", "1"), "exists"),
        (("add-namespace", "memory:1M", "--nsid", "257"), "out of range"),
        (("add-namespace", "/none/such.img"), "doesn't exist"),
        (("add-namespace", "memory:1M,lba=1"), "lba"),
        (("fly",), "invalid choice"),
        (("resize",), "required"),
    ],
)
def test_what_can_not_be_is_refused(serve: Serve, arguments: tuple[str, ...], why: str) -> None:
    served = serve("memory:1M")
    assert why in refused(served, *arguments)
    assert list(namespaces(served)) == [1]


def test_control_without_a_server(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "shadowbell", "control", tmp_path / "none.sock", "status"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == 2
    assert "can't reach" in ended.stderr


def speak(served: Served, data: bytes) -> list[dict[str, Any]]:
    """Send bytes to the control socket, close our side, and read all replies."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(served.socket(f"{SOCKET}.control")))
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answers:
            return [json.loads(line) for line in answers]


def test_nonsense_gets_an_error_and_harms_nothing(serve: Serve) -> None:
    served = serve("memory:1M")
    draw = random.Random(1)
    lines = [
        b"",
        b"\0",
        b"{}",
        b"[1]",
        b'{"command": "status", "extra": 1}',
        b'{"command": "remove-namespace", "nsid": "1"}',
        b'{"command": "resize", "nsid": 1, "size": -512}',
        b'{"command": "resize", "nsid": 1, "size": 18446744073709551616}',
        *(draw.randbytes(40).replace(b"\n", b"") for _ in range(50)),
    ]
    replies = speak(served, b"".join(line + b"\n" for line in lines))
    assert [reply["ok"] for reply in replies] == [False] * len(lines)
    assert all(reply["error"] for reply in replies)
    with contextlib.suppress(ConnectionError):
        assert speak(served, b"x" * 200_000) == []
    assert speak(served, b'{"command": "status"}\n' * 3)[2]["ok"]


def test_a_client_that_does_not_read_holds_up_nobody(serve: Serve) -> None:
    served = serve("memory:1M")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(served.socket(f"{SOCKET}.control")))
        connection.setblocking(False)
        sent = 0
        while sent < 4 * MIB:
            try:
                sent += connection.send(b'{"command": "status"}\n' * 1000)
            except BlockingIOError:
                break
        assert list(namespaces(served)) == [1]


def test_python_does_what_the_socket_does(tmp_path: Path) -> None:
    path = str(tmp_path / "disk.sock")
    config = ControllerConfig(socket=path, namespaces=(parse_namespace("memory:1M"),))
    server = Server(ServerConfig(controllers=(config,)))
    server.start()
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.add_namespace("memory:2M") == 2
        assert server.resize(2, 3 * MIB) == 3 * MIB
        assert [each.size for each in server.status()[0].namespaces] == [MIB, 3 * MIB]
        server.remove_namespace(1, controller=path)
        assert server.ledger() == []
        with pytest.raises(UserError, match="no namespace 1"):
            server.remove_namespace(1)
        with pytest.raises(UserError, match="no controller"):
            server.resize(2, controller="/other")
    finally:
        server.stop()
        thread.join(10)
    assert [each.nsid for each in server.status()[0].namespaces] == [2]
    server.close()


def test_limits_are_told(serve: Serve) -> None:
    served = serve("memory:1M,iops=500")
    assert namespaces(served)[1]["iops"] == 500
    assert "2000 commands/s, 1048576 bytes/s" in done(served, "qos", "1", "iops=2K", "bps=1M")
    assert namespaces(served)[1]["bps"] == MIB
    assert "no limits" in done(served, "qos", "1", "none")
    assert (namespaces(served)[1]["iops"], namespaces(served)[1]["bps"]) == (0, 0)
    assert "unknown limit" in refused(served, "qos", "1", "speed=9")
    assert "no namespace" in refused(served, "qos", "5", "iops=9")
