"""What is measured: a socket that somebody serves, or a namespace that we serve for it."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from shadowbell import guest
from shadowbell.bench.process import pin
from shadowbell.config import KINDS, parse_namespace
from shadowbell.driver import Doorbells, Host
from shadowbell.driver.client import socket_path
from shadowbell.errors import UserError

NAME: Final = "disk.sock"


@dataclass
class Attached:
    """A host on a target; ``pid`` is the server's, when it can be known."""

    host: Host
    pid: int | None


class Target(Protocol):
    """Something to attach to."""

    @property
    def name(self) -> str:
        """As the user gave it."""
        ...

    @property
    def fresh(self) -> bool:
        """Is it memory that nobody has written yet, where reads would find no pages?"""
        ...

    def attach(
        self, way: Doorbells, poll: str, cpu: int | None, arena: int
    ) -> AbstractContextManager[Attached]:
        """Attach by a doorbell way; a server that we start gets the polling window and the CPU."""
        ...


@dataclass(frozen=True)
class Socket:
    """A vfio-user socket of a server that runs already; it is left as it is."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def fresh(self) -> bool:
        return False

    @contextmanager
    def attach(self, way: Doorbells, poll: str, cpu: int | None, arena: int) -> Iterator[Attached]:
        with Host.connect(self.path, doorbells=way, arena_size=arena) as host:
            yield Attached(host, peer_pid(host.client.fileno()))

    def server(self) -> int | None:
        """The process that listens, when it is in sight. Raises UserError when nobody does."""
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(self.path))
            except OSError as error:
                raise UserError(f"can't connect to {self.path}: {error.strerror}") from error
            return peer_pid(connection.fileno())


@dataclass(frozen=True)
class Served:
    """A namespace, served by a `shadowbell serve` of its own for as long as we are attached."""

    namespace: str
    options: Sequence[str] = field(default=())

    @property
    def name(self) -> str:
        return self.namespace

    @property
    def fresh(self) -> bool:
        return self.namespace.startswith("memory:")

    def arguments(self, way: Doorbells, poll: str) -> list[str]:
        """What follows `shadowbell serve`."""
        mapped = ("--doorbells", "mapped") if way == "mapped" else ()
        window = () if poll == "adaptive" else ("--poll-max-us", poll)
        socket = ("--socket", f"{{folder}}/{NAME}")
        return ["--namespace", self.namespace, *socket, *mapped, *window, *self.options]

    @contextmanager
    def attach(self, way: Doorbells, poll: str, cpu: int | None, arena: int) -> Iterator[Attached]:
        with serve(self.arguments(way, poll)) as served:
            if cpu is not None:
                pin(served.pid, cpu)
            path = served.socket(NAME)
            with Host.connect(path, doorbells=way, arena_size=arena) as host:
                yield Attached(host, served.pid)


@contextmanager
def serve(arguments: Sequence[str]) -> Iterator[guest.Served]:
    """Run `shadowbell serve`; what it refuses is a UserError in its own words."""
    served = guest.Served(arguments)
    try:
        served.start()
    except guest.ServeError as error:
        log = served.log
        served.close()
        for line in log.splitlines():
            if line.startswith("shadowbell: error: "):
                raise UserError(line.removeprefix("shadowbell: error: ")) from error
        raise UserError(f"the server did not start: {log.strip()[-300:]}") from error
    try:
        yield served
    finally:
        served.close()


def peer_pid(fd: int) -> int | None:
    """The process at the other end of a unix socket; None when it isn't in sight."""
    with socket.socket(fileno=os.dup(fd)) as connection:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid: int = struct.unpack("iII", raw)[0]
    return pid if pid > 0 and Path(f"/proc/{pid}").exists() else None


def parse_target(text: str, options: Sequence[str] = ()) -> Target:
    """A socket (or an SPDK directory with ``cntrl``), or a namespace as `serve` takes it.

    Raises UserError when it is neither.
    """
    path = Path(text)
    if path.is_dir() or path.is_socket():
        where = socket_path(path)
        if not where.is_socket():
            raise UserError(f"no vfio-user socket at {where}: start its server first")
        return Socket(where)
    kind, colon, _ = text.partition(":")
    if (colon and kind in KINDS) or path.exists():
        parse_namespace(text)
        return Served(text, tuple(options))
    raise UserError(
        f"nobody serves {text}: give the socket of a running server, or a namespace such as "
        "memory:1G"
    )


@contextmanager
def paused(pids: Sequence[int | None]) -> Iterator[None]:
    """Stop processes (SIGSTOP) meanwhile: a polling server takes its processor even unused."""
    stopped: list[int] = []
    try:
        for pid in pids:
            if pid is not None:
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
        if stopped:
            time.sleep(0.01)
        yield
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
