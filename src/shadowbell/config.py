"""What to serve: the configuration, from a namespace specification, Python or a TOML file.

Every mistake is a `UserError` of one line. The structures check themselves, so that a configuration
made in Python is held to the same rules as one that was typed.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import msgspec

from shadowbell.errors import UserError
from shadowbell.limits import DEFAULT_BURST, NAMES, Limits, parse_limit
from shadowbell.placement import IOThreadMap, place_queues

MAX_IO_QUEUES = 128
MAX_IOTHREADS = 64
MAX_NAMESPACES = 256  # of a controller: NN in Identify Controller
MAX_POLL_US = 1_000_000
MAX_SIZE = 2**63 - 1  # off_t
MAX_TIMEOUT = 86400  # seconds
MAX_SOCKET_PATH = 107  # sockaddr_un.sun_path less its NUL

IMAGE_KINDS = ("qcow2", "vmdk", "vhdx", "vpc", "vdi", "luks")
"""Image formats of QEMU's, which serves them to us; by its names for them."""
WEB_KINDS = ("http", "https")
NBD_SCHEMES = ("nbd", "nbds", "nbd+unix", "nbds+unix", "nbd+vsock", "nbds+vsock")
SIZED_KINDS = ("memory", "null")
KINDS = ("file", *SIZED_KINDS, "nbd", "rbd", *IMAGE_KINDS, *WEB_KINDS)
SUFFIXES = {
    ".qcow2": "qcow2", ".vmdk": "vmdk", ".vhdx": "vhdx", ".vhd": "vpc", ".vdi": "vdi",
    ".luks": "luks",
}  # fmt: skip
"""What a name without a KIND says. Only the name: a guest can write any header into a raw disk."""
EXAMPLES = {
    "file": "a path: file:/path/to/disk.img",
    "nbd": "a URI: nbd://host/export or nbd+unix:///export?socket=/path",
    "rbd": "an image: rbd:POOL/IMAGE",
    **{kind: f"a path: {kind}:/path/to/image" for kind in IMAGE_KINDS},
    **{kind: f"an address: {kind}://host/disk.img" for kind in WEB_KINDS},
}
RECORDED_KINDS = ("file", "memory")
UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}

Kind = Literal[
    "file", "memory", "null",
    "nbd", "rbd", "qcow2", "vmdk", "vhdx", "vpc", "vdi", "luks", "http", "https",
]  # fmt: skip
Lba = Literal[512, 4096]
PollMax = int | Literal["busy"]


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
    """Everything one process serves. `poll_max_us` is the longest busy wait, 0 for none;
    with "busy" an I/O thread polls for as long as it has an I/O queue.

    `iothread_cpus`: the processor that each IOThread runs on; None leaves it to the kernel.

    `sqpoll`: a kernel thread submits to files, on a processor of its own. `iopoll`: completions of
    files are fetched from their devices, not told by interrupts. Raises UserError when a field is
    out of range or two controllers are in each other's way.
    """

    controllers: tuple[ControllerConfig, ...] = msgspec.field(name="controller")
    iothreads: int = 1
    iothread_cpus: tuple[int, ...] | None = None
    poll_max_us: PollMax = 256
    sqpoll: bool = False
    iopoll: bool = False

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


def parse_poll_max(text: str) -> PollMax:
    """A polling window: microseconds, or "busy". Raises UserError."""
    if text == "busy":
        return "busy"
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise UserError(f"bad polling window {text!r}: give microseconds (0: none) or busy")
    return int(text)


def parse_size(text: str) -> int:
    """Bytes of "4096", "512M", "1.5G" or "1GiB". Units are powers of 1024. Raises UserError."""
    number, unit = text.strip(), ""
    for index, character in enumerate(number):
        if not (character.isascii() and (character.isdigit() or character == ".")):
            number, unit = number[:index], number[index:].strip()
            break
    whole, _, fraction = number.partition(".")
    if len(number) > 32:
        raise UserError(f"bad size {text!r}: it has too many digits")
    exponent = UNITS.get(unit.upper().removesuffix("IB") if len(unit) == 3 else unit.upper())
    if exponent is None or not whole.isdigit() or ("." in number and not fraction.isdigit()):
        raise UserError(f"bad size {text!r}: write a number and K, M, G, T or P, such as 512M")
    scale: int = 10 ** len(fraction)
    size, rest = divmod(int(whole + fraction) << exponent, scale)
    if rest:
        raise UserError(f"bad size {text!r}: it isn't a whole number of bytes")
    if not 0 < size <= MAX_SIZE:
        raise UserError(f"bad size {text!r}: it must be between 1 and {MAX_SIZE} bytes")
    return size


def parse_namespace(spec: str) -> NamespaceConfig:
    """Read `[KIND:]PATH|SIZE[,lba=512|4096][,ro][,timeout=S][,key=FILE][,record=LOG]`
    or a URI.

    A comma within a path is written `,,`. Without KIND the text is the path of an image, whose
    format its name tells (SUFFIXES; else it is raw), or of a block device. Raises UserError.
    """
    head, *options = (part.replace("\0", ",") for part in _split(spec))
    kind, colon, target = head.partition(":")
    if not colon or "/" in kind:
        kind, target = SUFFIXES.get(os.path.splitext(head)[1].lower(), "file"), head
    elif kind in NBD_SCHEMES and target.startswith("//"):
        kind, target = "nbd", head
    elif kind in WEB_KINDS:
        target = head
    elif kind not in KINDS:
        kinds = " ".join(f"{each}:" for each in KINDS)
        raise UserError(
            f"unknown kind {kind!r} in {spec!r}: use one of {kinds} "
            "(a path that contains a colon is written file:PATH)"
        )
    fields: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if key in fields:
            raise UserError(f"{key} is given twice in {spec!r}: give it once")
        if key == "lba" and value in ("512", "4096"):
            fields[key] = int(value)
        elif key == "lba":
            raise UserError(f"bad lba {value!r} in {spec!r}: use lba=512 or lba=4096")
        elif key == "ro" and not equals:
            fields[key] = True
        elif key == "timeout":
            try:
                fields[key] = float(value)
            except ValueError:
                raise UserError(f"bad timeout {value!r} in {spec!r}: give seconds") from None
        elif key == "record" or (key == "key" and value):
            fields[key] = value
        elif key in NAMES and equals:
            fields[key] = parse_limit(key, value)
        else:
            raise UserError(
                f"unknown option {option!r} in {spec!r}: use lba=512, lba=4096, ro, iops=, bps=, "
                "burst=, timeout=SECONDS, key=FILE or record=LOG (a comma within a path is written "
                "twice)"
            )
    sized = kind in SIZED_KINDS
    if not target:
        missing = f"its size: write {kind}:1G" if sized else EXAMPLES[kind]
        raise UserError(f"{spec!r} lacks {missing}")
    return NamespaceConfig(
        kind=cast(Kind, kind),
        path=None if sized else target,
        size=parse_size(target) if sized else None,
        lba=cast(Lba, fields.get("lba", 512)),
        read_only="ro" in fields,
        timeout=fields.get("timeout", 0),
        key=fields.get("key"),
        record=fields.get("record"),
        **{name: fields[name] for name in NAMES if name in fields},
    )


def load(path: str | os.PathLike[str]) -> ServerConfig:
    """Read a TOML file; relative paths in it start from its folder. Raises UserError.

    A controller's `namespace` is a list of specifications (`parse_namespace`) and of tables with
    the fields of `NamespaceConfig`, where `size` and `bps` may be text (`parse_size`).
    """
    import tomllib

    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}: check the path") from None
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise UserError(f"{path} is no valid TOML: {_one_line(error)}") from None
    folder = Path(path).absolute().parent
    try:
        controllers = tables.get("controller")
        if not isinstance(controllers, list):
            raise UserError("nothing to serve: add a [[controller]] table")
        tables["controller"] = tuple(
            _controller(table, f"controller {number}", folder)
            for number, table in enumerate(controllers, 1)
        )
        return _convert(tables, ServerConfig, "")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


T = TypeVar("T", bound=msgspec.Struct)


def _controller(table: object, where: str, folder: Path) -> ControllerConfig:
    if not isinstance(table, dict):
        raise UserError(f"{where} is no table: write it as [[controller]]")
    entries = table.get("namespace", [])
    if not isinstance(entries, list):
        entries = [entries]
    table["namespace"] = tuple(
        _namespace(entry, f"{where}, namespace {number}", folder)
        for number, entry in enumerate(entries, 1)
    )
    for key in ("socket", "control"):
        if isinstance(table.get(key), str):
            table[key] = _from_folder(table[key], folder)
    return _convert(table, ControllerConfig, where)


def _namespace(entry: object, where: str, folder: Path) -> NamespaceConfig:
    try:
        if isinstance(entry, str):
            namespace = parse_namespace(entry)
        elif isinstance(entry, dict):
            for name in ("size", "bps"):
                if isinstance(entry.get(name), str):
                    entry[name] = parse_size(entry[name])
            namespace = _convert(entry, NamespaceConfig, "")
        else:
            raise UserError("is neither text nor a table: write it as 'file:/path' or a table")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    paths = {
        name: _from_folder(path, folder)
        for name in ("path", "key", "record")
        if (path := getattr(namespace, name)) is not None
        and not (name == "path" and (namespace.kind in ("nbd", "rbd", *WEB_KINDS)))
    }
    return msgspec.structs.replace(namespace, **paths)


def _convert(table: Mapping[str, object], kind: type[T], where: str) -> T:
    prefix = f"{where}: " if where else ""
    known = [field.encode_name for field in msgspec.structs.fields(kind)]
    for key in table:
        if key not in known:
            raise UserError(f"{prefix}unknown key {key!r}: use {', '.join(known)}")
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise UserError(f"{prefix}{_one_line(error)}") from None
    except UserError as error:
        raise UserError(f"{prefix}{error}") from None


def _split(spec: str) -> list[str]:
    if "\0" in spec:
        raise UserError(f"{spec!r} contains a NUL character: leave it out")
    return spec.replace(",,", "\0").split(",")


def _identity(kind: str, path: str) -> str:
    if kind == "file" or kind in IMAGE_KINDS:
        return os.path.realpath(path)
    if kind == "rbd":
        from shadowbell.block.rbd_name import parse_rbd

        return f"rbd:{parse_rbd(path).where}"
    return path


def _from_folder(path: str, folder: Path) -> str:
    return str(folder / os.path.expanduser(path)) if path else path


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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
