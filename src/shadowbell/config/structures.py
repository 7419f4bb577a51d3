"""What is served. The structures check themselves: every mistake is a `UserError` of one line."""

import os
from collections.abc import Sequence
from typing import Literal

import msgspec

from shadowbell.config.kinds import (
    EXAMPLES,
    IMAGE_KINDS,
    KINDS,
    MAX_IO_QUEUES,
    MAX_IOTHREADS,
    MAX_NAMESPACES,
    MAX_POLL_US,
    MAX_SIZE,
    MAX_SOCKET_PATH,
    MAX_TIMEOUT,
    NBD_SCHEMES,
    RECORDED_KINDS,
    SIZED_KINDS,
    WEB_KINDS,
    Kind,
    Lba,
    PollMax,
)
from shadowbell.errors import UserError
from shadowbell.limits import DEFAULT_BURST, Limits
from shadowbell.placement import IOThreadMap, place_queues


class NamespaceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One namespace. `size` (bytes) is for kinds "memory" and "null", `path` for the others.

    `path` is a URI for kinds "nbd", "http" and "https", and for "rbd" what `parse_rbd` reads.
    `timeout`: seconds after which a command fails when the server of such a disk (not of "rbd"), or
    of an image that isn't raw, is gone or silent; 0: it waits. `key`: of kind "luks", the file that
    holds the passphrase. `record`: a new file to log in what changes the disk (docs/storage.md).
    `iops` and `bps` (bytes) limit what it does in a second, 0 doesn't; what it left unused it may
    make up for within `burst` seconds. Raises UserError when the fields contradict each other.
    """

    kind: Kind
    path: str | None = None
    size: int | None = None
    lba: Lba = 512
    read_only: bool = False
    timeout: float = 0
    key: str | None = None
    record: str | None = None
    iops: int = 0
    bps: int = 0
    burst: float = DEFAULT_BURST

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"unknown kind {self.kind!r}: use {_listed(KINDS)}")
        if self.lba not in (512, 4096):
            raise UserError(f"lba {self.lba} isn't supported: use 512 or 4096")
        if self.record is not None:
            self._check_record(self.record)
        if self.timeout and self.kind in ("file", "rbd", *SIZED_KINDS):
            raise UserError(f"a {self.kind} namespace has no timeout: leave it out")
        if not 0 <= self.timeout <= MAX_TIMEOUT:
            raise UserError(f"timeout {self.timeout} is out of range: give 0 to {MAX_TIMEOUT}")
        if (self.key is None) == (self.kind == "luks"):
            raise UserError(
                "a luks namespace needs the file with its passphrase: luks:PATH,key=FILE"
                if self.key is None
                else f"a {self.kind} namespace has no key: leave it out"
            )
        _ = self.limits  # which are checked
        if self.kind not in SIZED_KINDS:
            if not self.path:
                raise UserError(f"a {self.kind} namespace needs {EXAMPLES[self.kind]}")
            if "\0" in self.path:
                raise UserError(f"{self.path!r} can't be a path: it contains a NUL character")
            if self.size is not None:
                raise UserError(f"{self.path}: a {self.kind}'s size is its own: leave size out")
            if self.kind == "nbd" and self.path.partition(":")[0] not in NBD_SCHEMES:
                raise UserError(f"{self.path!r} is no NBD URI: write {EXAMPLES['nbd']}")
            if self.kind in WEB_KINDS:
                msgspec.structs.force_setattr(self, "read_only", True)  # nobody writes to the web
            if self.kind == "rbd":
                from shadowbell.block.rbd_name import parse_rbd

                if parse_rbd(self.path).snapshot is not None:
                    msgspec.structs.force_setattr(self, "read_only", True)
            return
        if self.path is not None:
            raise UserError(f"a {self.kind} namespace has no path: leave it out or use file")
        if self.size is None:
            raise UserError(f"a {self.kind} namespace needs a size: {self.kind}:1G")
        if not 0 < self.size <= MAX_SIZE:
            raise UserError(f"size {self.size} is out of range: give 1 to {MAX_SIZE} bytes")
        if self.size % self.lba:
            raise UserError(
                f"{self.kind} size {self.size} is no multiple of its LBA size: "
                f"give a multiple of {self.lba} bytes"
            )

    @property
    def limits(self) -> Limits:
        """How much it may do."""
        return Limits(iops=self.iops, bps=self.bps, burst=self.burst)

    def _check_record(self, log: str) -> None:
        if not log or "\0" in log:
            raise UserError(f"{log!r} can't be a recording: give the path of a new file")
        if self.kind not in RECORDED_KINDS:
            raise UserError(f"a {self.kind} namespace can't be recorded: use file or memory")
        if self.read_only:
            raise UserError(f"nothing to record in {log}: the namespace is read-only")


class ControllerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One NVMe controller on one socket. `max_queues` counts I/O queue pairs.

    `control`: where its control socket is; None is beside `socket`, "" nowhere. `iothreads` says
    which IOThreads carry the queues (see `placement`), which then stay there; None: the queues take
    all IOThreads in turn, and move when load piles up on one. Raises UserError when a field is out
    of range.
    """

    socket: str
    namespaces: tuple[NamespaceConfig, ...] = msgspec.field(name="namespace")
    serial: str | None = None
    model: str = "shadowbell NVMe"
    doorbells: Literal["trap", "mapped"] = "trap"
    dbbuf: bool = True
    max_queues: int = 64
    interrupts: Literal["msix", "msi"] = "msix"
    control: str | None = None
    iothreads: IOThreadMap | None = None

    def __post_init__(self) -> None:
        if not self.socket:
            raise UserError("a controller needs a socket: give the path to listen at")
        _check_socket(self.socket)
        _check_socket(self.control or "")
        if not self.namespaces:
            raise UserError("nothing to serve: give at least one image or namespace")
        if len(self.namespaces) > MAX_NAMESPACES:
            raise UserError(
                f"{len(self.namespaces)} namespaces are too many: give at most {MAX_NAMESPACES}"
            )
        if self.serial is not None:
            _check_ascii("serial", self.serial, 20)
        _check_ascii("model", self.model, 40)
        if self.doorbells not in ("trap", "mapped"):
            raise UserError(f"unknown doorbells {self.doorbells!r}: use trap or mapped")
        if self.interrupts not in ("msix", "msi"):
            raise UserError(f"unknown interrupts {self.interrupts!r}: use msix or msi")
        _check_range("max_queues", self.max_queues, 1, MAX_IO_QUEUES)
        if self.iothreads is not None:
            place_queues(self.iothreads, self.max_queues)

    @property
    def queue_threads(self) -> tuple[int, ...] | None:
        """The IOThreads that `iothreads` gives the I/O queues 1, 2 and so on."""
        if self.iothreads is None:
            return None
        return place_queues(self.iothreads, self.max_queues)

    @property
    def serial_number(self) -> str:
        """The serial to report: `serial`, or 20 characters that follow from the socket's path."""
        if self.serial is not None:
            return self.serial
        from hashlib import blake2s

        digest = blake2s(os.fsencode(os.path.abspath(self.socket)), digest_size=9)
        return f"SB{digest.hexdigest().upper()}"


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything one process serves. `poll_max_us` is the longest busy wait, 0 for none: a quarter
    of it as a rule, more while such waits take an eighth of the time at most. With "busy" an I/O
    thread polls for as long as it has an I/O queue.

    `iothread_cpus`: the processor that each IOThread runs on; None leaves it to the kernel.

    `sqpoll`: a kernel thread submits to files, on a processor of its own. `iopoll`: completions of
    files are fetched from their devices, not told by interrupts. `fixed_buffers`: the clients'
    memory is pinned and registered with io_uring. Raises UserError when a field is out of range or
    two controllers are in each other's way.
    """

    controllers: tuple[ControllerConfig, ...] = msgspec.field(name="controller")
    iothreads: int = 1
    iothread_cpus: tuple[int, ...] | None = None
    poll_max_us: PollMax = 1024
    sqpoll: bool = False
    iopoll: bool = False
    fixed_buffers: bool = False

    def __post_init__(self) -> None:
        if not self.controllers:
            raise UserError("nothing to serve: give at least one controller")
        _check_range("iothreads", self.iothreads, 1, MAX_IOTHREADS)
        if self.poll_max_us != "busy":
            _check_range("poll_max_us", self.poll_max_us, 0, MAX_POLL_US)
        if self.iothread_cpus is not None:
            _check_cpus(self.iothread_cpus, self.iothreads)
        sockets: set[str] = set()
        images: dict[str, bool] = {}
        logs: set[str] = set()
        for controller in self.controllers:
            socket = os.path.abspath(controller.socket)
            if socket in sockets:
                raise UserError(f"two controllers want socket {socket}: give each its own")
            sockets.add(socket)
            if controller.control:
                control = os.path.abspath(controller.control)
                if control in sockets:
                    raise UserError(f"socket {control} is wanted twice: give each its own")
                sockets.add(control)
            for thread in controller.queue_threads or ():
                if thread >= self.iothreads:
                    raise UserError(
                        f"{controller.socket}: there is no I/O thread {thread}: iothreads is "
                        f"{self.iothreads}, so use 0 to {self.iothreads - 1}"
                    )
            for namespace in controller.namespaces:
                if namespace.record is not None:
                    log = os.path.realpath(namespace.record)
                    if log in logs:
                        raise UserError(f"two namespaces record in {log}: give each its own")
                    logs.add(log)
                if namespace.path is None:
                    continue
                image = _identity(namespace.kind, namespace.path)
                if image in images and not (images[image] and namespace.read_only):
                    raise UserError(
                        f"{namespace.path} is served twice: serve it once, or only read-only"
                    )
                images[image] = namespace.read_only


def _identity(kind: str, path: str) -> str:
    if kind == "file" or kind in IMAGE_KINDS:
        return os.path.realpath(path)
    if kind == "rbd":
        from shadowbell.block.rbd_name import parse_rbd

        return f"rbd:{parse_rbd(path).where}"
    return path


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UserError(f"{name} {value} is out of range: give {low} to {high}")


def _check_socket(path: str) -> None:
    if "\0" in path:
        raise UserError(f"socket {path!r} contains a NUL character: give another path")
    if (length := len(os.fsencode(path))) > MAX_SOCKET_PATH:
        raise UserError(
            f"socket path of {length} bytes is too long: "
            f"give one of at most {MAX_SOCKET_PATH} bytes"
        )


def _check_cpus(cpus: tuple[int, ...], iothreads: int) -> None:
    if len(cpus) != iothreads:
        raise UserError(
            f"iothread_cpus has {len(cpus)} processors for {iothreads} I/O threads: give each one"
        )
    usable = os.sched_getaffinity(0)
    for cpu in cpus:
        if cpu not in usable:
            allowed = ", ".join(map(str, sorted(usable)))
            raise UserError(f"processor {cpu} isn't there for us: use one of {allowed}")


def _check_ascii(name: str, value: str, limit: int) -> None:
    if not 0 < len(value) <= limit or not value.isascii() or not value.isprintable():
        raise UserError(f"bad {name} {value!r}: give 1 to {limit} printable ASCII characters")


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
