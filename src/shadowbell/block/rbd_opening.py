"""From the name of an RBD image to an open back end that owns the image's lock."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from shadowbell.block.backend import Backend
from shadowbell.block.rbd_name import RbdName, parse_rbd
from shadowbell.block.rbd_watcher import REQUEST, Watcher
from shadowbell.errors import UserError

if TYPE_CHECKING:
    from shadowbell.block.rbd import RbdBackend
    from shadowbell.block.rbd_pool import Pool

LOOK_SECONDS = 0.1  # between two looks at who has the lock
BREAK_SECONDS = 5.0


def open_rbd(target: str, *, lba: int, read_only: bool) -> Backend:
    """Open `POOL/IMAGE...` (`parse_rbd`), for writing with its exclusive lock. Raises UserError."""
    name = parse_rbd(target)
    try:
        from shadowbell.block.rbd import RbdBackend
        from shadowbell.block.rbd_pool import Pool
    except ImportError as error:
        raise UserError(
            "this build of shadowbell has no Ceph client: install librbd "
            "(Debian: apt-get install librbd-dev) and build shadowbell again"
        ) from error
    token = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    with _no_signals():
        pool = _connect(Pool(name.id), name)
        try:
            backend = RbdBackend(pool, name.image, name.snapshot, read_only=read_only)
        except OSError as error:
            pool.shut()
            raise _open_error(name, error) from error
        try:
            _check_size(name, backend.size, lba)
            if not read_only and name.lock:
                _lock(backend, name, token)
        except OSError as error:
            backend.close()
            raise _lock_error(name, error) from error
        except BaseException:
            backend.close()
            raise
        if not read_only:
            backend.watcher = Watcher(backend, name.where, token)
            backend.watcher.start()
    return backend


def _connect(pool: Pool, name: RbdName) -> Pool:
    try:
        pool.read_file(name.conf)
    except OSError as error:
        what = name.conf or "a ceph.conf (/etc/ceph/ceph.conf)"
        raise UserError(
            f"can't read {what}: {error.strerror}; give the cluster's with ?conf=PATH"
        ) from error
    options = {
        # What goes wrong is said in one line of ours.
        "log_to_stderr": "false",
        "err_to_stderr": "false",
        # The guest has a cache of its own, and what this one holds would be lost with this server.
        "rbd_cache": "false",
        "client_mount_timeout": str(name.connect),
        "rados_mon_op_timeout": str(name.connect),
        "rados_osd_op_timeout": str(name.timeout),
    } | name.ceph
    for key, value in options.items():
        try:
            pool.set_option(key, value)
        except OSError as error:
            raise UserError(
                f"Ceph takes no {key}={value} ({error.strerror}): see ceph config help {key}"
            ) from error
    try:
        pool.connect()
    except OSError as error:
        raise _connect_error(name, error) from error
    try:
        pool.enter(name.pool, name.namespace)
    except OSError as error:
        pool.shut()
        if error.errno == errno.ENOENT:
            raise UserError(
                f"there is no pool {name.pool!r}; make it with: ceph osd pool create {name.pool}"
            ) from error
        raise UserError(f"can't use pool {name.pool}: {error.strerror}") from error
    return pool


def _connect_error(name: RbdName, error: OSError) -> UserError:
    user = f"client.{name.id}"
    if error.errno == errno.ETIMEDOUT:
        return UserError(
            f"no monitor of the Ceph cluster answered within {name.connect} s; "
            "check mon_host in ceph.conf and that the cluster runs (ceph -s)"
        )
    if error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EINVAL):
        return UserError(
            f"the Ceph cluster doesn't let {user} in ({error.strerror}); give the user with ?id= "
            "and its key with keyring=PATH (ceph auth get-or-create makes one)"
        )
    return UserError(f"can't connect to the Ceph cluster: {error.strerror}")


def _open_error(name: RbdName, error: OSError) -> UserError:
    if error.errno == errno.ENOENT:
        return UserError(
            f"there is no image {name.where}; make it with: rbd create --size 10G {name.where}"
        )
    if error.errno in (errno.EPERM, errno.EROFS, errno.EACCES):
        return UserError(
            f"client.{name.id} may not write {name.where}; --read-only serves it without writing"
        )
    if error.errno == errno.ETIMEDOUT:
        return UserError(f"the cluster has no OSD that answers for {name.where}; look at: ceph -s")
    return UserError(f"can't open {name.where}: {error.strerror}")


def _lock_error(name: RbdName, error: OSError) -> UserError:
    if error.errno == errno.EINVAL:
        return UserError(
            f"{name.where} has no exclusive lock; add it with: rbd feature enable {name.where} "
            "exclusive-lock (or use ?lock=none and see to it yourself that one server writes)"
        )
    return UserError(f"can't lock {name.where}: {error.strerror}")


def _check_size(name: RbdName, size: int, lba: int) -> None:
    if size < lba or size % lba:
        raise UserError(
            f"{name.where} is {size} bytes, no multiple of its {lba}-byte blocks; "
            "choose another lba or size"
        )


def _lock(backend: RbdBackend, name: RbdName, token: str) -> None:
    """Become the one who writes. Raises UserError or OSError."""
    deadline = time.monotonic() + name.wait
    asked = False
    while True:
        owners = backend.owners()
        # The lock may have come to us already, for the word that we left for its owner.
        if (not owners or backend.owned()) and _acquire(backend):
            break
        if owners and name.takeover and not asked:
            asked = True
            _ask(backend, token)
        if time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
        elif not owners:
            deadline += 1  # somebody else was faster; see who
        elif name.takeover:
            try:
                backend.break_lock(owners[0])
            except OSError:
                # It may have changed hands meanwhile, but not for ever.
                if time.monotonic() > deadline + BREAK_SECONDS:
                    raise
                time.sleep(LOOK_SECONDS)
        else:
            raise UserError(
                f"{name.where} is served by another ({owners[0]}): stop that one, wait for it with "
                "?wait=SECONDS, or take the disk over with ?takeover"
            )
    backend.write_note(REQUEST, None)


def _acquire(backend: RbdBackend) -> bool:
    try:
        backend.lock()
    except OSError as error:
        if error.errno == errno.EROFS:
            return False
        raise
    return True


def _ask(backend: RbdBackend, token: str) -> None:
    """Leave word for the owner, who carries it out itself: not to be waited for if it is dead."""

    def ask() -> None:
        with contextlib.suppress(OSError):
            backend.write_note(REQUEST, token)

    threading.Thread(target=ask, name="rbd-takeover", daemon=True).start()


@contextlib.contextmanager
def _no_signals() -> Iterator[None]:
    """The library's threads inherit what is blocked now: signals are for our main thread."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
