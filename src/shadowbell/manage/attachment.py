"""One client's life on a controller, from accept to the last thing that is cleaned up after it."""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from shadowbell.manage.outbox import Outbox
from shadowbell.manage.peer import has_hung_up, maps_privately, peer_pid
from shadowbell.vfio_user import ProtocolError, Session

if TYPE_CHECKING:
    from shadowbell.dataplane import Engine
    from shadowbell.pci import PciFunction

BURST = 64
"""Messages taken from one client before the others get their turn."""

Log = logging.LoggerAdapter[logging.Logger]


class Detached(Exception):
    """The client is gone or has to go; the message says why."""


class Attachment:
    """Owns `client`. The function is the engine's."""

    def __init__(
        self,
        client: socket.socket,
        engine: Engine,
        function: PciFunction,
        *,
        mapped: bool,
        log: Log,
    ) -> None:
        self.pid = peer_pid(client)
        self._client = client
        self._engine = engine
        self._function = function
        self._log = log
        self._outbox = Outbox(client)
        self._session = Session(
            function,
            engine,
            mapped=mapped,
            log=log,
            is_private=functools.partial(maps_privately, self.pid),
        )
        engine.open_channel(client.fileno())

    def fileno(self) -> int:
        return self._client.fileno()

    @property
    def has_reply_waiting(self) -> bool:
        return self._outbox.waiting

    def has_hung_up(self) -> bool:
        return has_hung_up(self._client)

    def serve(self) -> bool:
        """Answer what has come; False when more may wait: after BURST messages, or behind a reply
        that the client doesn't take. Raises Detached.
        """
        try:
            for _ in range(BURST):
                if self._outbox.waiting:
                    return False
                arrived = self._engine.next_message()
                if arrived is None:
                    return True
                reply = self._session.handle(*arrived)
                if reply is not None:
                    self._outbox.send(*reply)
        except EOFError:
            raise Detached("closed the connection") from None
        except (ProtocolError, ValueError) as error:
            raise Detached(f"broke the protocol: {error}") from error
        except OSError as error:
            raise Detached(f"lost the connection: {error}") from error
        return False

    def resume(self) -> None:
        """Everything was taken: the IOThread may read the socket again."""
        self._engine.resume_channel()

    def flush(self) -> None:
        """Send the reply that waits. Raises Detached."""
        try:
            self._outbox.flush()
        except OSError as error:
            raise Detached(f"lost the connection: {error}") from error

    def close(self) -> None:
        """Leave nothing of the client behind: queues, vectors, its memory, descriptors.

        The order matters: nothing may start once the channel is closed, and memory goes only when
        the reset has waited for what was in flight.
        """
        self._try(self._engine.close_channel)
        self._try(functools.partial(self._function.reset, power_loss=True))
        self._try(self._session.close)
        self._try(self._engine.dma_unmap_all)
        self._outbox.close_fds()
        with contextlib.suppress(OSError):
            self._client.close()

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:
            self._log.error("cleaning up after a client: %s", error)
            self._log.debug("traceback", exc_info=True)
