"""`shadowbell demo`: the options of `shadowbell.demo.run`."""

from shadowbell.cli.options import Parser


def demo(arguments: list[str]) -> int:
    """Run the demonstration. Raises UserError."""
    Parser(
        "demo",
        description="Make a disk, serve it, attach a driver through the socket, write, verify and "
        "measure; then the same in a Linux guest where a QEMU >= 10.1 is at hand.",
    ).parse_args(arguments)
    from shadowbell.demo import run

    return run()
