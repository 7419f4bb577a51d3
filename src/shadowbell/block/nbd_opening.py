"""From an NBD URI to an open back end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shadowbell.block.backend import Backend
from shadowbell.block.nbd_connector import CONNECT_SECONDS, Connector
from shadowbell.errors import UserError

if TYPE_CHECKING:
    from shadowbell.block.images import ImageServer
    from shadowbell.block.nbd import Handle


def open_nbd(
    uri: str,
    *,
    lba: int,
    read_only: bool,
    timeout: float,
    name: str | None = None,
    server: ImageServer | None = None,
) -> Backend:
    """Connect to `uri` (the NBD URI specification's, with libnbd's additions for TLS).

    `timeout`: seconds after which a command fails that a lost or silent server doesn't answer, 0
    for never. `name`: what messages call the disk. `server`: the child behind `uri`, which is the
    back end's from here on unless this raises. Raises UserError.
    """
    try:
        from shadowbell.block.nbd import Handle, NbdBackend
    except ImportError as error:
        raise UserError(
            "this build of shadowbell has no NBD client: install libnbd "
            "(Debian: apt-get install libnbd-dev) and build shadowbell again"
        ) from error
    name = name or uri

    def connect(wanted: Callable[[], bool]) -> Handle:
        if server is not None:
            server.ensure()
        handle = Handle()
        handle.connect(uri, wanted, CONNECT_SECONDS)
        return handle

    try:
        handle = connect(lambda: True)
    except OSError as error:
        raise UserError(f"can't connect to {name}: {error.strerror or error}") from error
    if handle.read_only and not read_only:
        raise UserError(f"{name} is read-only; serve it with ,ro")
    if handle.minimum_block > lba:
        raise UserError(
            f"{name} takes no requests of less than {handle.minimum_block} bytes: "
            + ("serve it with lba=4096" if handle.minimum_block <= 4096 else "it can't be served")
        )
    size = handle.size
    if size < lba or size % lba:
        raise UserError(
            f"{name} is {size} bytes, no multiple of its {lba}-byte blocks; choose another lba"
        )
    backend = NbdBackend(handle, read_only=read_only, timeout=timeout)
    backend.connector = Connector(backend, connect, name)
    backend.server = server
    return backend
