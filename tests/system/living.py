"""What the tests of a running server ask it, and what a host sees of its answers."""

from __future__ import annotations

import contextlib
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from serving import SOCKET
from shadowbell.cli import main
from shadowbell.driver import CommandError, Host, Load, LoadSpec, LoadStats
from shadowbell.driver.admin import Event
from shadowbell.guest import Served
from shadowbell.nvme import Feature, LogPage
from shadowbell.nvme.events import EventConfiguration
from shadowbell.nvme.identify import NamespaceList

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
