"""A served disk for each test: a real server process, reached through its socket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from serving import SOCKET, Attach, Serve
from shadowbell.driver import Doorbells, Host
from shadowbell.guest import Served


@pytest.fixture
def serve() -> Iterator[Serve]:
    """``serve("memory:64M", ...)`` starts a server; its exit must be clean.

    ``image``: bytes of a sparse file ``{folder}/disk.img`` to make first.
    """
    running: list[Served] = []

    def start(*arguments: str, image: int = 0) -> Served:
        served = Served([*arguments, "--socket", f"{{folder}}/{SOCKET}"])
        if image:
            with (served.folder / "disk.img").open("wb") as file:
                file.truncate(image)
        running.append(served)
        served.start()
        return served

    yield start
    try:
        for served in running:
            served.check_alive()
            assert served.stop() == 0
            assert "Traceback" not in served.log
            assert not Path(served.socket(SOCKET)).exists()
    finally:
        for served in running:
            served.close()


@pytest.fixture
def attach() -> Iterator[Attach]:
    """``attach(served, ...)`` connects a host, which leaves at the end."""
    with ExitStack() as stack:

        def connect(served: Served, doorbells: Doorbells = "auto", **options: Any) -> Host:
            host = Host.connect(served.socket(SOCKET), doorbells=doorbells, **options)
            stack.callback(host.detach, shut_down=False)
            return host

        yield connect
