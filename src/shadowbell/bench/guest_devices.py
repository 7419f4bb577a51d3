"""The disks that a guest can be given: ours, QEMU's own, and what they keep their data in.

All of them get the same back end: ``null`` (ours, or QEMU's null-co), ``memory`` (ours, or a file
in /dev/shm), or one image file that each opens in turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from shadowbell import guest
from shadowbell.bench.target import Socket, serve
from shadowbell.config import NamespaceConfig
from shadowbell.errors import UserError
from shadowbell.guest.child import Child

NODE: Final = "bench"
START_TIMEOUT: Final = 10.0
STORAGE_DAEMON: Final = "qemu-storage-daemon"
# QEMU's trace points that fire at each doorbell register write of its nvme device.
NVME_DOORBELLS: Final = ("pci_nvme_mmio_doorbell_sq", "pci_nvme_mmio_doorbell_cq")


@dataclass(frozen=True)
class Setup:
    """A disk that is ready: QEMU's arguments, and how to count doorbell writes.

    ``traces``: events to count, one a doorbell write. ``served``: ours, whose ledger counts.
    """

    name: str
    extra: tuple[str, ...]
    devices: tuple[dict[str, Any], ...]
    traces: tuple[str, ...] = ()
    served: guest.Served | None = None


class Backend:
    """A namespace specification as each disk opens it."""

    def __init__(self, spec: NamespaceConfig, text: str, folder: Path) -> None:
        self.text = text
        self._spec = spec
        self._folder = folder

    def blockdev(self) -> str:
        """QEMU's ``-blockdev``; makes the file that stands for memory."""
        if self._spec.kind == "null":
            return f"driver=null-co,node-name={NODE},size={self._spec.size},read-zeroes=on"
        if self._spec.kind == "file":
            return (
                f"driver=file,node-name={NODE},filename={self._spec.path},"
                "cache.direct=on,aio=native"
            )
        path = self._folder / "memory"
        with path.open("ab") as file:
            file.truncate(self._spec.size or 0)
        return f"driver=file,node-name={NODE},filename={path},locking=off"


@contextmanager
def backend(spec: NamespaceConfig, text: str) -> Iterator[Backend]:
    """A back end, and a folder in memory for what it needs."""
    shared = Path("/dev/shm")
    with TemporaryDirectory(
        prefix="shadowbell-bench-", dir=shared if shared.is_dir() else None
    ) as folder:
        yield Backend(spec, text, Path(folder))


@contextmanager
def shadowbell(store: Backend, options: Sequence[str]) -> Iterator[Setup]:
    """Our disk, as `serve` with these options is."""
    arguments = ["--namespace", store.text, "--socket", "{folder}/disk.sock", *options]
    with serve(arguments) as served:
        device = dict(guest.disk(served.socket("disk.sock")))
        yield Setup("shadowbell", (), (device,), served=served)


@contextmanager
def other(target: Socket) -> Iterator[Setup]:
    """Somebody else's vfio-user disk."""
    yield Setup(target.name, (), (dict(guest.disk(target.path.absolute())),))


@contextmanager
def qemu_nvme(store: Backend, *, ioeventfd: bool) -> Iterator[Setup]:
    """QEMU's nvme. With ioeventfds its doorbell writes pass its trace points by: not counted."""
    device = {"driver": "nvme", "drive": NODE, "serial": "bench", "ioeventfd": ioeventfd}
    name = "QEMU nvme, ioeventfd=on" if ioeventfd else "QEMU nvme"
    extra = ("-blockdev", store.blockdev())
    yield Setup(name, extra, (device,), () if ioeventfd else NVME_DOORBELLS)


@contextmanager
def virtio_blk(store: Backend, *, iothread: bool) -> Iterator[Setup]:
    """QEMU's virtio-blk."""
    device: dict[str, Any] = {"driver": "virtio-blk-pci", "drive": NODE}
    extra = ["-blockdev", store.blockdev()]
    if iothread:
        device["iothread"] = "thread"
        extra += ["-object", "iothread,id=thread"]
    name = "virtio-blk, IOThread" if iothread else "virtio-blk"
    yield Setup(name, tuple(extra), (device,))


class StorageDaemon(Child):
    """qemu-storage-daemon, exporting a back end by vhost-user-blk."""

    def __init__(self, store: Backend, program: Path) -> None:
        super().__init__("vhost")
        self.socket = self.folder / "vhost.sock"
        export = f"type=vhost-user-blk,id=export,node-name={NODE},writable=on"
        self._command: list[str | Path] = [
            *(program, "--blockdev", store.blockdev()),
            *("--export", f"{export},addr.type=unix,addr.path={self.socket}"),
        ]

    def start(self) -> None:
        self._launch(self._command)
        if not self._wait_until(self.socket.is_socket, START_TIMEOUT):
            raise UserError(f"{STORAGE_DAEMON} did not start: {self.log.strip()}")


@contextmanager
def vhost_user_blk(store: Backend, program: Path) -> Iterator[Setup]:
    """vhost-user-blk, served by qemu-storage-daemon."""
    with StorageDaemon(store, program) as daemon:
        chardev = ("-chardev", f"socket,id=vhost,path={daemon.socket}")
        device = {"driver": "vhost-user-blk-pci", "chardev": "vhost"}
        yield Setup("vhost-user-blk", chardev, (device,))
