"""`shadowbell qemu-args`: what to add to a QEMU command line."""

import shlex

from shadowbell.cli.options import Parser, server_config, serving_parser
from shadowbell.config import ServerConfig
from shadowbell.manage.qemu import qemu_arguments


def qemu_args(arguments: list[str]) -> int:
    """Print the arguments as one line for a shell. Raises UserError."""
    parser = serving_parser(
        "qemu-args",
        "Print the QEMU arguments that attach to what `serve` with the same options is.",
    )
    add_memory_option(parser)
    config, own = server_config(parser, arguments, "memory", need_images=False)
    print(qemu_line(config, own.get("memory", "4G")))
    return 0


def add_memory_option(parser: Parser) -> None:
    """Add --memory, the size of the virtual machine's memory."""
    group = parser.add_argument_group("the virtual machine")
    group.add_argument("--memory", metavar="SIZE", help="its memory (default 4G)")


def qemu_line(config: ServerConfig, memory: str) -> str:
    """The arguments for all controllers of `config`, quoted for a shell. Raises UserError."""
    return shlex.join(qemu_arguments(config, memory=memory))
