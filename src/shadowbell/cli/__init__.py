"""The command line: `shadowbell serve | control | qemu-args | demo | bench | crash | lab | ...`.

Start to listening is a promise, so a command imports only what it needs, when it needs it.
"""

import os
import sys
from collections.abc import Callable, Sequence

from shadowbell import __version__
from shadowbell.errors import UserError

USAGE = """\
usage: shadowbell COMMAND [OPTION...]

A userspace NVMe controller for virtual machines, over vfio-user.

commands:
  serve      be an NVMe disk: listen at a socket that QEMU attaches to
  control    ask a running server, or change what it serves
  qemu-args  print the QEMU arguments that attach to such a socket
  demo       make a disk, serve it, write and verify it, and measure
  bench      measure a disk: ours or another's, on a socket or in a guest
  crash      check the disks that a power failure could have left
  lab        show on KVM what an ioeventfd does with a doorbell
  version    print the version

`shadowbell COMMAND --help` lists a command's options."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 2 for a mistake of the user's, told in one line."""
    command, *arguments = list(sys.argv[1:] if argv is None else argv) or [""]
    try:
        return _command(command)(arguments)
    except UserError as error:
        print(f"shadowbell: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output left. Nothing may be written at exit, or Python complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _command(name: str) -> Callable[[list[str]], int]:
    match name:
        case "serve":
            from shadowbell.cli.serve import serve

            return serve
        case "control":
            from shadowbell.cli.control import control

            return control
        case "qemu-args":
            from shadowbell.cli.qemu_args import qemu_args

            return qemu_args
        case "demo":
            from shadowbell.cli.demo import demo

            return demo
        case "bench":
            from shadowbell.cli.bench import bench

            return bench
        case "crash":
            from shadowbell.cli.crash import crash

            return crash
        case "lab":
            from shadowbell.cli.lab import lab

            return lab
        case "version" | "--version" | "-V":
            return _version
        case "help" | "--help" | "-h":
            return _help
    what = f"unknown command {name!r}" if name else "no command"
    raise UserError(
        f"{what}: use serve, control, qemu-args, demo, bench, crash, lab or version "
        "(see shadowbell --help)"
    )


def _version(arguments: list[str]) -> int:
    if arguments:
        raise UserError(f"version takes no arguments: leave {arguments[0]!r} out")
    print(f"shadowbell {__version__}")
    return 0


def _help(arguments: list[str]) -> int:
    if arguments:
        return _command(arguments[0])(["--help"])
    print(USAGE)
    return 0
