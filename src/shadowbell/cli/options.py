"""The options that say what to serve, and the configuration they make."""

import argparse
import os
from typing import Any, NoReturn

import msgspec

from shadowbell.config import (
    ControllerConfig,
    NamespaceConfig,
    ServerConfig,
    load,
    parse_namespace,
    parse_poll_max,
)
from shadowbell.errors import UserError

NEXT_CONTROLLER = "--and"
PROCESS = ("iothreads", "iothread_cpus", "poll_max_us", "sqpoll", "iopoll", "fixed_buffers")
EPILOG = """\
namespaces:
  disk.img, /dev/vdb             an image file or a block device, LBAs of 512 bytes
  file:/path,lba=4096,ro         the same with its options (a comma in a path: ,,)
  disk.qcow2, vmdk:/path         an image that QEMU reads (vhdx, vdi, vpc, luks:/path,key=FILE)
  nbd://host/export,timeout=60   a disk behind an NBD server
  https://host/disk.img          a raw disk on the web, read-only
  memory:1G,lba=4096             memory of this process, lost when it ends
  rbd:POOL/IMAGE?conf=PATH&id=NAME
                                 an image of a Ceph cluster (docs/storage.md)
  null:1T                        moves no data: for measuring
  disk.img,record=disk.log       logs what changes the disk: for `shadowbell crash`

several controllers:
  --and starts the next one, with options of its own:
    shadowbell serve a.img --socket a.sock --and b.img --socket b.sock
"""


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are `UserError`, and that takes no abbreviations."""

    def __init__(self, command: str, **options: Any) -> None:
        super().__init__(
            prog=f"shadowbell {command}".strip(),
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def serving_parser(command: str, description: str) -> Parser:
    """The parser of a command that takes a whole configuration (`server_config`)."""
    parser = Parser(command, description=description, epilog=EPILOG)
    _add_controller_options(parser)
    process = parser.add_argument_group("the process")
    process.add_argument("--iothreads", type=int, metavar="N", help="I/O threads (default 1)")
    process.add_argument(
        "--iothread-cpus",
        type=_cpus,
        metavar="LIST",
        help="the processor of each I/O thread: 2,3 (default: any)",
    )
    process.add_argument(
        "--poll-max-us",
        metavar="US|busy",
        help="longest busy wait before an I/O thread sleeps, as a rule a quarter of it (default "
        "1024, 0: none, busy: always poll while a guest has queues)",
    )
    process.add_argument(
        "--sqpoll", action="store_true", help="a kernel thread submits to files: costs a processor"
    )
    process.add_argument(
        "--iopoll", action="store_true", help="poll the devices of files instead of interrupts"
    )
    process.add_argument(
        "--fixed-buffers",
        action="store_true",
        help="pin the guests' memory and register it with io_uring, for I/O to files",
    )
    process.add_argument(
        "--config", metavar="FILE", help="read everything from a TOML file instead"
    )
    return parser


def server_config(
    parser: Parser, arguments: list[str], *own: str, need_images: bool = True
) -> tuple[ServerConfig, dict[str, Any]]:
    """Parse the arguments; returns the configuration and the command's `own` options, if given.

    Raises UserError. Without `need_images`, a controller may be given without its namespaces.
    """
    first, *others = _split(arguments)
    given = vars(parser.parse_intermixed_args(first))
    mine = {name: given.pop(name) for name in own if name in given}
    if not given.get("images"):
        given.pop("images", None)
    if "config" in given:
        path = given.pop("config")
        if given or others:
            option = NEXT_CONTROLLER if others else _option(next(iter(given)))
            raise UserError(f"--config says everything: move {option} into {path}")
        return load(path), mine
    process = {name: given.pop(name) for name in PROCESS if name in given}
    if "poll_max_us" in process:
        process["poll_max_us"] = parse_poll_max(process["poll_max_us"])
    controllers = [_controller(given, default_socket(), need_images)]
    for segment in others:
        following = Parser("")
        following.prog = parser.prog
        _add_controller_options(following)
        controllers.append(
            _controller(vars(following.parse_intermixed_args(segment)), None, need_images)
        )
    return ServerConfig(controllers=tuple(controllers), **process), mine


def _cpus(text: str) -> tuple[int, ...]:
    return tuple(int(cpu) for cpu in text.split(","))


def default_socket() -> str:
    """Where to listen when nobody says: a path that belongs to this user."""
    if folder := os.environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(folder, "shadowbell.sock")
    return f"/tmp/shadowbell-{os.getuid()}.sock"


def _add_controller_options(parser: Parser) -> None:
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="an image, a block device, or as --namespace"
    )
    group = parser.add_argument_group("the controller")
    group.add_argument(
        "--namespace",
        action="append",
        dest="namespace",
        metavar="SPEC",
        help="a namespace (below); repeat for more; they follow the IMAGEs",
    )
    group.add_argument("--socket", metavar="PATH", help=f"listen here (default {default_socket()})")
    group.add_argument(
        "--control",
        metavar="PATH",
        help="take `shadowbell control` here (default: the socket's path and .control)",
    )
    group.add_argument(
        "--no-control", action="store_true", help="take no `shadowbell control` at all"
    )
    group.add_argument("--serial", metavar="TEXT", help="default: follows from the socket's path")
    group.add_argument("--model", metavar="TEXT", help="default: shadowbell NVMe")
    group.add_argument("--read-only", action="store_true", help="refuse writes to every namespace")
    group.add_argument(
        "--doorbells", choices=("trap", "mapped"), help="how the guest rings (default trap)"
    )
    group.add_argument("--no-dbbuf", action="store_true", help="don't offer Doorbell Buffer Config")
    group.add_argument(
        "--max-queues", type=int, metavar="N", help="I/O queue pairs, 1 to 128 (default 64)"
    )
    group.add_argument(
        "--interrupts",
        choices=("msix", "msi"),
        help="msi lets QEMU unplug the device (default msix)",
    )


def _controller(given: dict[str, Any], socket: str | None, need_images: bool) -> ControllerConfig:
    specs = [*given.pop("images", []), *given.pop("namespace", [])]
    namespaces = tuple(parse_namespace(spec) for spec in specs)
    if not namespaces and not need_images:
        namespaces = (NamespaceConfig(kind="null", size=4096),)
    if given.pop("read_only", False):
        namespaces = tuple(msgspec.structs.replace(each, read_only=True) for each in namespaces)
    if "no_dbbuf" in given:
        given["dbbuf"] = not given.pop("no_dbbuf")
    if given.pop("no_control", False):
        given["control"] = ""
    path = given.pop("socket", socket)
    if path is None:
        raise UserError(f"the controller after {NEXT_CONTROLLER} needs a socket: add --socket PATH")
    return ControllerConfig(socket=path, namespaces=namespaces, **given)


def _split(arguments: list[str]) -> list[list[str]]:
    segments: list[list[str]] = [[]]
    for argument in arguments:
        if argument == NEXT_CONTROLLER:
            segments.append([])
        else:
            segments[-1].append(argument)
    return segments


def _option(name: str) -> str:
    return "the images" if name == "images" else f"--{name.replace('_', '-')}"
