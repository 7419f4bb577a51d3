"""A running server that is asked, and whose namespaces come, go and change under a host."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from serving import SOCKET, Attach, Serve

from shadowbell.cli import main
from shadowbell.config import ControllerConfig, ServerConfig, parse_namespace
from shadowbell.driver import CommandError, Host, Load, LoadSpec, LoadStats, QueuePair
from shadowbell.driver.admin import Event
from shadowbell.errors import UserError
from shadowbell.guest import Served
from shadowbell.manage import Server
from shadowbell.nvme import Feature, LogPage, Status
from shadowbell.nvme.events import EventConfiguration
from shadowbell.nvme.identify import IdentifierType, NamespaceList

MIB = 1 << 20
NAMESPACE_CHANGED = Event(2, 0, LogPage.CHANGED_NAMESPACE_LIST)


def control(served: Served, *arguments: str) -> tuple[int, str, str]:
    """`shadowbell control` with the socket of `served`: exit code, output and errors."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = main(["control", str(served.socket(SOCKET)), *arguments])
    return code, output.getvalue(), errors.getvalue()


def done(served: Served, *arguments: str) -> str:
    """What a control command that must succeed printed."""
    code, output, errors = control(served, *arguments)
    assert code == 0, errors
    return output


def refused(served: Served, *arguments: str) -> str:
    """The line that a command is refused with."""
    code, output, errors = control(served, *arguments)
    assert code == 2
    assert output == ""
    (line,) = errors.splitlines()
    assert line.startswith("shadowbell: error: ")
    return line


def namespaces(served: Served) -> dict[int, dict[str, Any]]:
    return {each["nsid"]: each for each in json.loads(done(served, "status"))["namespaces"]}


def watch(host: Host) -> None:
    """Ask for Namespace Attribute Changed, as Linux does."""
    host.admin.set_feature(
        Feature.ASYNCHRONOUS_EVENT_CONFIGURATION, EventConfiguration.NAMESPACE_ATTRIBUTE_NOTICES
    )
    host.admin.request_event()


def changed(host: Host) -> list[int]:
    """Wait for the event, and read what the log then says."""
    assert host.admin.events(timeout=10) == [NAMESPACE_CHANGED]
    host.admin.request_event()
    return list(NamespaceList(host.admin.get_log(LogPage.CHANGED_NAMESPACE_LIST, 4096)))


def status_of(error: pytest.ExceptionInfo[CommandError]) -> int:
    return error.value.status


# --- the control socket -------------------------------------------------------------------------


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


# --- resizing -----------------------------------------------------------------------------------


def test_a_file_that_is_truncated_is_noticed(serve: Serve, attach: Attach) -> None:
    served = serve("{folder}/disk.img", image=8 * MIB)
    host = attach(served)
    watch(host)
    queue = host.create_queue_pair()
    os.truncate(served.folder / "disk.img", 16 * MIB)
    assert changed(host) == [1]
    assert host.admin.identify_namespace(1).nsze == 16 * MIB // 512
    queue.write(1, 16 * MIB // 512 - 1, b"end" + bytes(509))
    os.truncate(served.folder / "disk.img", 4 * MIB + 100)
    assert changed(host) == [1]
    identify = host.admin.identify_namespace(1)
    assert identify.nsze == identify.ncap == 4 * MIB // 512
    assert host.admin.identify_controller().tnvmcap == 4 * MIB
    with pytest.raises(CommandError) as caught:
        queue.read(1, 4 * MIB // 512, 1)
    assert status_of(caught) == Status.LBA_OUT_OF_RANGE
    assert queue.read(1, 4 * MIB // 512 - 1, 1) == bytes(512)


def test_resizing_by_command(serve: Serve, attach: Attach) -> None:
    served = serve("memory:8M", "null:1M,lba=4096", "{folder}/disk.img", image=MIB)
    host = attach(served)
    watch(host)
    queue = host.create_queue_pair()
    queue.write(1, 0, b"first" + bytes(507))
    queue.write(1, 5000, b"gone" + bytes(508))
    for nsid, size in ((1, 2 * MIB + 512), (1, 8 * MIB), (2, 4 * MIB), (3, 2 * MIB)):
        assert done(served, "resize", str(nsid), str(size)) == f"namespace {nsid} is {size} bytes\n"
        assert changed(host) == [nsid]
        assert host.admin.identify_namespace(nsid).nsze == size // host.lba_size(nsid)
    assert queue.read(1, 0, 1) == b"first" + bytes(507)
    assert queue.read(1, 4096, 2048) == bytes(MIB)
    assert (served.folder / "disk.img").stat().st_size == 2 * MIB
    assert "loses data" in refused(served, "resize", "3", "1M")
    os.truncate(served.folder / "disk.img", MIB)
    assert done(served, "resize", "3") == f"namespace 3 is {MIB} bytes\n"
    done(served, "resize", "3")
    assert changed(host) == [3]
    assert host.admin.events(timeout=0.2) == []


def test_an_empty_file_keeps_its_namespace(serve: Serve, attach: Attach) -> None:
    """Nothing left is how a device that went away looks: its commands tell by themselves."""
    served = serve("{folder}/disk.img", image=MIB)
    queue = attach(served).create_queue_pair()
    os.truncate(served.folder / "disk.img", 0)
    done(served, "resize", "1")
    with pytest.raises(CommandError) as caught:
        queue.read(1, 0, 1)
    assert status_of(caught) == Status.UNRECOVERED_READ_ERROR


@contextmanager
def loaded(host: Host, spec: LoadSpec) -> Iterator[LoadStats]:
    """A load on a queue of its own for as long as the block takes; its counters afterwards."""
    load = Load(host, [host.create_queue_pair(64)], spec)
    stats = LoadStats()
    thread = threading.Thread(target=lambda: stats.merge(load.run(seconds=60)))
    thread.start()
    try:
        yield stats
    finally:
        load.stop()
        thread.join(70)


@pytest.mark.parametrize("kind", ["memory:8M", "{folder}/disk.img"])
def test_resizing_under_load(serve: Serve, attach: Attach, kind: str) -> None:
    served = serve(kind, "memory:8M", "--iothreads", "2", image=8 * MIB)
    host = attach(served)
    half = LoadSpec(pattern="randrw", depth=16, length=4 * MIB // 512)
    with (
        loaded(host, half) as kept,
        loaded(host, LoadSpec(depth=8, nsid=2)) as other,
        loaded(host, LoadSpec(depth=8, first=4 * MIB // 512)) as beyond,
    ):
        for _ in range(10):
            for size in (4, 8):
                if "memory" in kind:
                    done(served, "resize", "1", f"{size}M")
                else:
                    os.truncate(served.folder / "disk.img", size * MIB)
                    done(served, "resize", "1")
    assert kept.clean
    assert other.clean
    assert kept.ios
    assert other.ios
    assert beyond.lost == beyond.violations == 0
    assert beyond.errors == 0 or beyond.first_error & 0x7FF in (
        Status.LBA_OUT_OF_RANGE,
        Status.UNRECOVERED_READ_ERROR,  # between the truncate and our seeing it
    )


# --- adding and removing ------------------------------------------------------------------------


def test_a_namespace_comes_and_goes(serve: Serve, attach: Attach) -> None:
    served = serve("memory:8M", image=MIB)
    host = attach(served)
    watch(host)
    queue = host.create_queue_pair()
    assert done(served, "add-namespace", f"{served.folder}/disk.img") == "namespace 2 added\n"
    assert changed(host) == [2]
    assert host.admin.active_namespaces() == [1, 2]
    queue.write(2, 7, b"seven" + bytes(507))
    done(served, "remove-namespace", "2")
    assert changed(host) == [2]
    assert host.admin.active_namespaces() == [1]
    assert host.admin.identify_namespace(2).nsze == 0
    with pytest.raises(CommandError) as caught:
        queue.read(2, 7, 1)
    # Base 2.0, 3.2.1.4: what is sent to an inactive namespace.
    assert status_of(caught) == Status.INVALID_FIELD_IN_COMMAND
    assert caught.value.completion.dnr
    with open(served.folder / "disk.img", "rb") as image:
        assert os.pread(image.fileno(), 5, 7 * 512) == b"seven"
    assert host.controller.nn == host.admin.identify_controller().nn == 256


def test_another_disk_never_has_an_earlier_ones_names(serve: Serve, attach: Attach) -> None:
    served = serve("memory:8M", "{folder}/disk.img", image=MIB)
    host = attach(served)
    path = f"{served.folder}/disk.img"
    names = []
    for spec in (path, "memory:1M", path):
        done(served, "remove-namespace", "2")
        assert done(served, "add-namespace", spec, "--nsid", "2") == "namespace 2 added\n"
        names.append(host.admin.namespace_descriptors(2))
    done(served, "remove-namespace", "2")
    assert done(served, "add-namespace", "memory:1M") == "namespace 3 added\n"
    assert names[0] == names[2]
    for kind in (IdentifierType.EUI64, IdentifierType.NGUID, IdentifierType.UUID):
        assert names[0][kind] != names[1][kind]


def test_an_image_is_free_once_its_namespace_is_gone(serve: Serve) -> None:
    served = serve("memory:1M", "{folder}/disk.img", image=MIB)
    path = f"{served.folder}/disk.img"
    assert "locked" in refused(served, "add-namespace", path)
    done(served, "remove-namespace", "2")
    done(served, "add-namespace", path)


def test_all_namespaces_may_go(serve: Serve, attach: Attach) -> None:
    served = serve("memory:1M")
    host = attach(served)
    done(served, "remove-namespace", "1")
    assert host.admin.active_namespaces() == []
    host.create_queue_pair().flush(0xFFFFFFFF)
    done(served, "add-namespace", "memory:1M")
    assert list(namespaces(served)) == [2]


def test_adding_and_removing_under_load(serve: Serve, attach: Attach) -> None:
    served = serve("memory:8M", "memory:8M", "--iothreads", "2")
    host = attach(served)
    with (
        loaded(host, LoadSpec(pattern="randrw", depth=16)) as kept,
        loaded(host, LoadSpec(depth=16, nsid=2)) as removed,
    ):
        for _ in range(10):
            done(served, "remove-namespace", "2")
            done(served, "add-namespace", "memory:8M", "--nsid", "2")
    assert kept.clean
    assert kept.ios
    assert removed.lost == removed.violations == removed.mismatches == 0
    assert removed.errors == 0 or removed.first_error & 0x7FF == Status.INVALID_FIELD_IN_COMMAND


# --- write protection ---------------------------------------------------------------------------


def refuses_writes(queue: QueuePair, nsid: int = 1) -> bool:
    """Whether every command that would change the namespace gets the status that says so."""
    found = set()
    writes: list[Callable[[], None]] = [
        lambda: queue.write(nsid, 0, bytes(512)),
        lambda: queue.write_zeroes(nsid, 0, 1),
        lambda: queue.dataset_management(nsid, [(0, 1)]),
    ]
    for write in writes:
        try:
            write()
            found.add(0)
        except CommandError as error:
            found.add(error.status)
    queue.read(nsid, 0, 1)
    queue.flush(nsid)
    assert found in ({0}, {Status.NAMESPACE_IS_WRITE_PROTECTED})
    return found != {0}


def test_write_protection_by_the_host(serve: Serve, attach: Attach) -> None:
    served = serve("memory:1M", "memory:1M")
    host = attach(served)
    watch(host)
    queue = host.create_queue_pair()
    feature = Feature.NAMESPACE_WRITE_PROTECTION_CONFIG
    for state in (1, 0, 2):
        host.admin.set_feature(feature, state, nsid=1)
        assert refuses_writes(queue) == bool(state)
        assert host.admin.identify_namespace(1).nsattr == bool(state)
        assert not refuses_writes(queue, 2)
    assert namespaces(served)[1]["write_protect"] == "until-power-cycle"
    with pytest.raises(CommandError) as caught:
        host.admin.set_feature(feature, 0, nsid=1)
    assert status_of(caught) == Status.FEATURE_NOT_CHANGEABLE
    host.reset()
    assert refuses_writes(host.create_queue_pair())
    assert host.admin.events() == []  # it knows what it asked for
    host.detach()
    again = attach(served)
    assert not refuses_writes(again.create_queue_pair())


def test_write_protection_by_the_operator(serve: Serve, attach: Attach) -> None:
    served = serve("{folder}/disk.img", "memory:1M,ro", image=MIB)
    host = attach(served)
    watch(host)
    queue = host.create_queue_pair()
    for state in ("protect", "until-power-cycle", "none"):
        done(served, "write-protect", "1", state)
        assert changed(host) == [1]
        assert refuses_writes(queue) == (state != "none")
        assert namespaces(served)[1]["write_protect"] == state
    done(served, "write-protect", "1", "none")
    assert host.admin.events(timeout=0.1) == []
    assert "read-only" in refused(served, "write-protect", "2", "none")


def test_limits_are_told(serve: Serve) -> None:
    served = serve("memory:1M,iops=500")
    assert namespaces(served)[1]["iops"] == 500
    assert "2000 commands/s, 1048576 bytes/s" in done(served, "qos", "1", "iops=2K", "bps=1M")
    assert namespaces(served)[1]["bps"] == MIB
    assert "no limits" in done(served, "qos", "1", "none")
    assert (namespaces(served)[1]["iops"], namespaces(served)[1]["bps"]) == (0, 0)
    assert "unknown limit" in refused(served, "qos", "1", "speed=9")
    assert "no namespace" in refused(served, "qos", "5", "iops=9")
