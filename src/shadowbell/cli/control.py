"""`shadowbell control`: ask a running server something, or have it change what it serves."""

import argparse
import json
import os
import socket
from typing import Any

import msgspec

from shadowbell.cli.options import Parser
from shadowbell.config import parse_size
from shadowbell.errors import UserError
from shadowbell.limits import Limits, parse_limits
from shadowbell.manage.control import (
    SUFFIX,
    AddNamespace,
    AnyRequest,
    Ledger,
    MoveQueue,
    Qos,
    RemoveNamespace,
    Reply,
    Resize,
    Status,
    WriteProtect,
)

TIMEOUT = 120.0  # a namespace that is removed is flushed first


def control(arguments: list[str]) -> int:
    """Do one command and print what it gives. Raises UserError, also for what is refused."""
    given = _parser().parse_args(arguments)
    request: AnyRequest = given.request(given)
    result = ask(given.socket, request)
    match request:
        case Status() | Ledger():
            print(json.dumps(result, indent=1))
        case AddNamespace():
            print(f"namespace {result} added")
        case RemoveNamespace(nsid):
            print(f"namespace {nsid} removed")
        case Resize(nsid):
            print(f"namespace {nsid} is {result} bytes")
        case WriteProtect(nsid, state):
            print(f"namespace {nsid}: write protection {state}")
        case MoveQueue(cqid, iothread) if result:
            print(f"completion queue {cqid} is on I/O thread {iothread}")
        case MoveQueue(cqid):
            raise UserError(f"completion queue {cqid} stays: its commands took too long to end")
        case Qos(nsid, limits):
            print(f"namespace {nsid}: {_limits(limits)}")
    return 0


def ask(path: str, request: AnyRequest) -> Any:
    """Send a request to the server at `path`, its own socket or its control socket.

    Returns the reply's result. Raises UserError when it is refused or nobody answers.
    """
    if os.path.exists(path + SUFFIX):
        path += SUFFIX
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect(path)
            connection.sendall(msgspec.json.encode(request) + b"\n")
            with connection.makefile("rb") as answers:
                line = answers.readline()
        reply = msgspec.json.decode(line, type=Reply)
    except TimeoutError:
        raise UserError(f"the server at {path} doesn't answer") from None
    except OSError as error:
        raise UserError(
            f"can't reach a server at {path}: {error.strerror}: give the socket that it serves"
        ) from None
    except msgspec.MsgspecError:
        raise UserError(f"the server at {path} hung up") from None
    if not reply.ok:
        raise UserError(reply.error)
    return reply.result


def _parser() -> Parser:
    parser = Parser("control", description="Ask a running server, or change what it serves.")
    parser.add_argument("socket", metavar="SOCKET", help="what it serves at, or its control socket")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Sub)

    def command(name: str, text: str, request: Any) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
        made.set_defaults(request=request)
        return made

    command("status", "the controller, its client and its namespaces, as JSON", lambda _: Status())
    command("ledger", "every queue's counters, as JSON", lambda _: Ledger())
    add = command(
        "add-namespace",
        "attach another namespace",
        lambda given: AddNamespace(given.spec, getattr(given, "nsid", None)),
    )
    add.add_argument("spec", metavar="SPEC", help="as for serve: disk.img, memory:1G,lba=4096, ...")
    add.add_argument("--nsid", type=int, metavar="N", help="its identifier (default: a new one)")
    _with_nsid(
        command(
            "remove-namespace",
            "detach a namespace, flush and close it",
            lambda given: RemoveNamespace(given.nsid),
        )
    )
    resize = command(
        "resize",
        "take up the size that a file or device has now, or give a new one",
        lambda given: Resize(given.nsid, parse_size(given.size) if given.size else None),
    )
    _with_nsid(resize)
    resize.add_argument("size", metavar="SIZE", nargs="?", default="", help="such as 20G")
    protect = command(
        "write-protect",
        "refuse writes to a namespace, or no longer",
        lambda given: WriteProtect(given.nsid, given.state),
    )
    _with_nsid(protect)
    protect.add_argument("state", choices=("none", "protect", "until-power-cycle"))
    qos = command(
        "qos",
        "limit what a namespace does in a second",
        lambda given: Qos(given.nsid, parse_limits(given.limits)),
    )
    _with_nsid(qos)
    qos.add_argument(
        "limits",
        metavar="LIMIT",
        nargs="+",
        help="iops=N, bps=SIZE, burst=SECONDS; what isn't given isn't limited; or: none",
    )
    move = command(
        "move-queue",
        "have another I/O thread serve a completion queue and all that use it",
        lambda given: MoveQueue(given.cqid, given.iothread),
    )
    move.add_argument("cqid", type=int, metavar="CQID", help="the completion queue's identifier")
    move.add_argument("iothread", type=int, metavar="IOTHREAD", help="from 0")
    return parser


def _limits(limits: Limits) -> str:
    said = [f"{limits.iops} commands/s"] if limits.iops else []
    said += [f"{limits.bps} bytes/s"] if limits.bps else []
    return f"{', '.join(said)}, burst {limits.burst:g} s" if said else "no limits"


def _with_nsid(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("nsid", type=int, metavar="NSID", help="the namespace's identifier")


class _Sub(Parser):
    """A subcommand's parser: argparse gives it its whole name."""

    def __init__(self, *, prog: str, **options: Any) -> None:
        super().__init__("", **options)
        self.prog = prog
