"""`shadowbell lab`: experiments on real KVM."""

from shadowbell.cli.options import Parser


def lab(arguments: list[str]) -> int:
    """Run an experiment. Raises UserError."""
    parser = Parser(
        "lab",
        description="ioeventfd: a few bytes of guest code on real KVM show that an ioeventfd loses "
        "a traditional doorbell's value, and that with shadow doorbells it needs none.",
    )
    parser.add_argument("experiment", choices=("ioeventfd",), help="what to show")
    parser.parse_args(arguments)
    from shadowbell.lab import run

    return run()
