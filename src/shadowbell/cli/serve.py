"""`shadowbell serve`: be NVMe disks until a signal ends it."""

import logging
import signal
from types import FrameType

from shadowbell.cli.options import server_config, serving_parser
from shadowbell.cli.qemu_args import add_memory_option, qemu_line
from shadowbell.config import ControllerConfig, NamespaceConfig
from shadowbell.manage import Server

UNITS = {40: "T", 30: "G", 20: "M", 10: "K", 0: ""}


def serve(arguments: list[str]) -> int:
    """Serve what the arguments say; returns after SIGINT, SIGTERM or SIGHUP, everything flushed.

    SIGUSR1 writes each controller's ledger beside its socket, as JSON. Raises UserError.
    """
    parser = serving_parser("serve", "Be an NVMe disk that QEMU (and others) attach to.")
    add_memory_option(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="log every detail")
    config, own = server_config(parser, arguments, "memory", "verbose")
    line = qemu_line(config, own.get("memory", "4G"))
    _log_to_stderr(logging.DEBUG if own.get("verbose") else logging.INFO)

    server = Server(config)

    def stop(signum: int, frame: FrameType | None) -> None:
        server.stop()

    def ledgers(signum: int, frame: FrameType | None) -> None:
        server.write_ledgers()

    # Before anything opens, so that no signal finds a half-started server without a handler.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, stop)
    signal.signal(signal.SIGUSR1, ledgers)
    try:
        server.start()
        for controller in config.controllers:
            print(_summary(controller))
        print(f"QEMU arguments:\n  {line}", flush=True)
        server.run()
    finally:
        server.close()
    return 0


def _summary(controller: ControllerConfig) -> str:
    lines = [f"listening at {controller.socket} (serial {controller.serial_number})"]
    for nsid, namespace in enumerate(controller.namespaces, 1):
        lines.append(f"  namespace {nsid}: {_namespace(namespace)}")
    return "\n".join(lines)


def _namespace(namespace: NamespaceConfig) -> str:
    what = namespace.path or f"{namespace.kind}:{_amount(namespace.size or 0)}"
    recorded = f", recorded in {namespace.record}" if namespace.record else ""
    return f"{what}, LBA {namespace.lba}" + (", read-only" if namespace.read_only else recorded)


def _amount(size: int) -> str:
    exponent = next(e for e in (40, 30, 20, 10, 0) if size % 2**e == 0)
    return f"{size >> exponent}{UNITS[exponent]}"


def _log_to_stderr(level: int) -> None:
    logging.raiseExceptions = False  # a closed stderr is no reason to stop serving
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
