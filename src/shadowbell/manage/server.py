"""The server: one reactor thread over every controller's socket, and the IOThreads behind it."""

from __future__ import annotations

import gc
import os
import resource
import selectors
from collections.abc import Callable

from shadowbell.config import ServerConfig
from shadowbell.dataplane import IOThread
from shadowbell.errors import UserError
from shadowbell.manage.port import Port


class Server:
    """Serves a configuration: `start`, `run` until another thread or a signal handler calls
    `stop`, then `close`."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self._selector = selectors.DefaultSelector()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wakeup, selectors.EVENT_READ, self._woken)
        self._stopping = False
        self._ledgers_wanted = False
        self._closed = False
        self._iothreads: list[IOThread] = []
        self._ports: list[Port] = []

    def start(self) -> None:
        """Open every back end and listen at every socket. Raises UserError; then `close`."""
        _raise_descriptor_limit()
        for index in range(self.config.iothreads):
            try:
                iothread = IOThread(index, poll_max_us=self.config.poll_max_us)
                iothread.start()
            except OSError as error:
                raise UserError(
                    f"can't start an I/O thread: {error}: io_uring has to be allowed "
                    "(sysctl kernel.io_uring_disabled, the container's seccomp profile)"
                ) from error
            self._iothreads.append(iothread)
        for controller in self.config.controllers:
            port = Port(controller, self._selector)
            self._ports.append(port)
            port.open(self._iothreads)

    def run(self) -> None:
        """React until `stop`. What a client does never ends it."""
        while not self._stopping:
            busy = any(port.wants_turn for port in self._ports)
            # What one reaction closes another of the batch may still be about: they check.
            for key, _ in self._selector.select(0 if busy else None):
                react: Callable[[], None] = key.data
                react()
            for port in self._ports:
                if port.wants_turn:
                    port.turn()

    def stop(self) -> None:
        """End `run`. From any thread or a signal handler, more than once if need be."""
        self._stopping = True
        self._wake()

    def write_ledgers(self) -> None:
        """Have `run` write each controller's ledger beside its socket; signal-safe like `stop`."""
        self._ledgers_wanted = True
        self._wake()

    def close(self) -> None:
        """Detach every client, flush and close every back end, remove the sockets.

        After `run` has returned, or without it. Safe to repeat.
        """
        if self._closed:
            return
        self._closed = True
        for port in self._ports:
            port.close()
        for iothread in self._iothreads:
            iothread.stop()
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
        if self._ledgers_wanted:
            self._ledgers_wanted = False
            for port in self._ports:
                port.write_ledger()


def _raise_descriptor_limit() -> None:
    """Every vector is two descriptors: 64 controllers with 65 vectors pass the usual 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
