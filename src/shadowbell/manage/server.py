"""The server: one reactor thread over every controller's socket, and the IOThreads behind it."""

from __future__ import annotations

import gc
import os
import resource
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from shadowbell.config import ServerConfig, parse_namespace
from shadowbell.dataplane import IOThread, Pins
from shadowbell.dataplane.ledger import QueueLedger
from shadowbell.errors import UserError
from shadowbell.limits import Limits
from shadowbell.manage.balancer import Balancer
from shadowbell.manage.disks import Protection
from shadowbell.manage.port import ControllerStatus, Port

LOOK_SECONDS = 1.0
"""How often the sizes of files and devices are looked at: no notice comes for a truncate that
doesn't come for every write as well."""


T = TypeVar("T")


class Server:
    """Serves a configuration: `start`, `run` until another thread or a signal handler calls
    `stop`, then `close`.

    What changes a running server may be called from any thread, and raises UserError. `controller`
    is its socket's path; the first one's unless given.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self._selector = selectors.DefaultSelector()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wakeup, selectors.EVENT_READ, self._woken)
        self._stopping = False
        self._reactor: threading.Thread | None = None
        self._calls: deque[Callable[[], None]] = deque()
        self._calls_lock = threading.Lock()
        self._ledgers_wanted = False
        self._closed = False
        self._iothreads: list[IOThread] = []
        self._pins: Pins | None = None
        self._ports: list[Port] = []
        self._balancer: Balancer | None = None

    def start(self) -> None:
        """Open every back end and listen at every socket. Raises UserError; then `close`."""
        _raise_descriptor_limit()
        cpus = self.config.iothread_cpus or (None,) * self.config.iothreads
        for index, cpu in enumerate(cpus):
            try:
                iothread = IOThread(
                    index,
                    poll_max_us=self.config.poll_max_us,
                    cpu=cpu,
                    sqpoll=self.config.sqpoll,
                    iopoll=self.config.iopoll,
                )
                iothread.start()
            except OSError as error:
                raise UserError(
                    f"can't start an I/O thread: {error}: io_uring has to be allowed "
                    "(sysctl kernel.io_uring_disabled, the container's seccomp profile)"
                ) from error
            self._iothreads.append(iothread)
        if self.config.fixed_buffers:
            self._pins = Pins(self._iothreads)
        for controller in self.config.controllers:
            port = Port(controller, self._selector, iopoll=self.config.iopoll)
            self._ports.append(port)
            port.open(self._iothreads, self._pins)
        if len(self._iothreads) > 1:
            self._balancer = Balancer(self._iothreads, self._ports)
            self._selector.register(self._balancer, selectors.EVENT_READ, self._balancer.woken)

    def run(self) -> None:
        """React until `stop`. What a client does never ends it."""
        self._reactor = threading.current_thread()
        next_look = 0.0
        try:
            while not self._stopping:
                # What one reaction closes another of the batch may still be about: they check.
                for key, _ in self._selector.select(self._patience(next_look)):
                    react: Callable[[], None] = key.data
                    react()
                for port in self._ports:
                    if port.wants_turn:
                        port.turn()
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + LOOK_SECONDS
                    for port in self._ports:
                        port.look()
                if self._balancer is not None:
                    self._balancer.turn()
        finally:
            with self._calls_lock:
                self._reactor = None
            self._take_calls()

    def _patience(self, next_look: float) -> float | None:
        """How long to wait for something to react to."""
        if any(port.wants_turn for port in self._ports):
            return 0
        left = [] if self._balancer is None else self._balancer.seconds_left()
        if any(port.disks.may_change for port in self._ports):
            left.append(next_look - time.monotonic())
        return max(0.0, min(left)) if left else None

    def stop(self) -> None:
        """End `run`. From any thread or a signal handler, more than once if need be."""
        self._stopping = True
        self._wake()

    def write_ledgers(self) -> None:
        """Have `run` write each controller's ledger beside its socket; signal-safe like `stop`."""
        self._ledgers_wanted = True
        self._wake()

    # --- changing what is served ------------------------------------------------------------------

    def status(self) -> list[ControllerStatus]:
        """Every controller, its client and its namespaces."""
        return self._call(lambda: [port.status() for port in self._ports])

    def ledger(self, *, controller: str | None = None) -> list[QueueLedger]:
        """Counters of a controller's queues."""
        return self._call(lambda: self._port(controller).ledger())

    def add_namespace(
        self, spec: str, *, nsid: int | None = None, controller: str | None = None
    ) -> int:
        """Attach what `spec` describes as on the command line; returns its identifier."""
        config = parse_namespace(spec)
        return self._call(lambda: self._port(controller).disks.add(config, nsid))

    def remove_namespace(self, nsid: int, *, controller: str | None = None) -> None:
        """Detach a namespace, flush it and close its back end."""
        self._call(lambda: self._port(controller).disks.remove(nsid))

    def resize(self, nsid: int, size: int | None = None, *, controller: str | None = None) -> int:
        """Take up a changed size, or make it `size` bytes first; returns the size in bytes."""
        return self._call(lambda: self._port(controller).disks.resize(nsid, size))

    def move_queue(self, cqid: int, iothread: int, *, controller: str | None = None) -> bool:
        """Have another IOThread serve a completion queue and all submission queues that use it.

        No other queue notices. False: the queue's commands took too long to end, and it stays where
        it is. Unless the controller's configuration maps its queues, load may move it again.
        """
        return self._call(lambda: self._port(controller).move_queue(cqid, iothread))

    def write_protect(self, nsid: int, state: Protection, *, controller: str | None = None) -> None:
        """Change a namespace's write protection, whatever state a host put it into."""
        self._call(lambda: self._port(controller).disks.protect(nsid, state))

    def limit(self, nsid: int, limits: Limits, *, controller: str | None = None) -> None:
        """Change how much a namespace may do."""
        self._call(lambda: self._port(controller).disks.limit(nsid, limits))

    def _port(self, controller: str | None) -> Port:
        if controller is None:
            return self._ports[0]
        wanted = os.path.abspath(controller)
        for port in self._ports:
            if os.path.abspath(port.config.socket) == wanted:
                return port
        raise UserError(f"no controller listens at {controller}")

    def _call(self, do: Callable[[], T]) -> T:
        """Have the reactor's thread do it, and wait; without `run`, nobody is in the way."""
        done: Future[T] = Future()

        def call() -> None:
            try:
                done.set_result(do())
            except BaseException as error:
                done.set_exception(error)

        with self._calls_lock:
            elsewhere = self._reactor not in (None, threading.current_thread())
            if elsewhere:
                self._calls.append(call)
        if elsewhere:
            self._wake()
        else:
            call()
        return done.result()

    def _take_calls(self) -> None:
        while self._calls:
            self._calls.popleft()()

    def close(self) -> None:
        """Detach every client, flush and close every back end, remove the sockets.

        After `run` has returned, or without it. Safe to repeat.
        """
        if self._closed:
            return
        self._closed = True
        for port in self._ports:
            port.close()
        if self._pins is not None:
            self._pins.close()
            self._pins = None
        for iothread in self._iothreads:
            iothread.stop()
        if self._balancer is not None:
            self._balancer.close()
            self._balancer = None
        self._selector.close()
        os.close(self._wakeup)
        # A controller's parts know each other; who embeds a server wants its descriptors back now.
        self._ports.clear()
        self._iothreads.clear()
        gc.collect()

    def _wake(self) -> None:
        if not self._closed:
            os.eventfd_write(self._wakeup, 1)

    def _woken(self) -> None:
        os.eventfd_read(self._wakeup)
        self._take_calls()
        if self._ledgers_wanted:
            self._ledgers_wanted = False
            for port in self._ports:
                port.write_ledger()


def _raise_descriptor_limit() -> None:
    """Every vector is two descriptors: 64 controllers with 65 vectors pass the usual 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
