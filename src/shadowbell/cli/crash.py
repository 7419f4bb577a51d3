"""`shadowbell crash`: run a check on every disk that a power failure could have left."""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import get_args

from shadowbell.cli.options import Parser
from shadowbell.crash import CrashStates, Device, Granularity, Recording, State
from shadowbell.errors import UserError

DESCRIPTION = """\
Make the disks that a power failure at any moment could have left of a recorded namespace, and run
COMMAND on each, {} in it replaced by the image's path. It may change the image. Exit code 1 when
one of them made COMMAND fail; that image is made again and kept."""
EPILOG = """\
example:
  shadowbell serve disk.img,record=disk.log      then: mkfs, write, sync, ... in the guest
  shadowbell crash disk.log -- e2fsck -fp {}     (disk.img was new; else: --base copy-of-it)

COMMAND's environment has SHADOWBELL_CRASH_NS, the time of the failure (CLOCK_MONOTONIC, ns): what
was acknowledged before it has to be there."""


def crash(arguments: list[str]) -> int:
    """Check crash states; returns 1 when the command failed on one. Raises UserError."""
    arguments, command = _split(arguments)
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    if not command:
        raise UserError("what is to check the images? end with: -- COMMAND {}")
    recording = Recording.open(given["log"])
    states = CrashStates(
        recording, granularity=given["granularity"], device=given["device"], seed=given["seed"]
    )
    folder = Path(given["folder"])
    window = _window(recording, given["window"])
    began = time.monotonic()
    checked, failed = 0, 0
    with tempfile.TemporaryDirectory(prefix="shadowbell-crash-", dir=folder) as scratch:
        image = Path(scratch) / "crashed.img"
        for state in states.sample(given["states"], window):
            checked += 1
            with state.image(image, given["base"]):
                output = _check(command, image, state)
            if output is None:
                continue
            failed += 1
            kept = folder / f"crashed-{checked}.img"
            state.write(kept, given["base"])
            print(f"state {checked}: {_describe(state)}: failed, kept as {kept}\n{output}")
            if failed == given["failures"]:
                break
    seconds = time.monotonic() - began
    print(
        f"{checked} states of {recording.moments} moments, {len(recording.changes)} changes and "
        f"{len(recording.flushes)} flushes in {seconds:.1f} s: {failed} failed"
    )
    return 1 if failed else 0


def _parser() -> Parser:
    parser = Parser(
        "crash",
        description=DESCRIPTION,
        epilog=EPILOG,
        usage="shadowbell crash LOG [OPTION...] -- COMMAND {}",
    )
    parser.add_argument("log", metavar="LOG", help="of a namespace served with record=LOG")
    add = parser.add_argument
    add("--base", metavar="IMAGE", default=None, help="the disk before (default: zeros)")
    add("--states", type=_number, metavar="N", default=200, help="about so many (default 200)")
    add("--failures", type=_number, metavar="N", default=1, help="stop after N (default 1)")
    add("--seed", type=int, metavar="N", default=0, help="which, if not all (default 0)")
    add("--window", metavar="A:B", default=None, help="seconds from the recording's start")
    add(
        "--granularity",
        choices=get_args(Granularity),
        default="command",
        help="what is kept or lost as a whole (default command)",
    )
    add(
        "--device",
        choices=get_args(Device),
        default="honest",
        help="one that lies: does the check notice?",
    )
    add("--folder", metavar="DIR", default=".", help="where the images go (default: here)")
    return parser


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _number(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("give 1 or more")
    return number


def _window(recording: Recording, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, last = text.partition(":")
    start = recording.times[0] if recording.times else 0
    try:
        a, b = (start + int(float(part) * 1e9) for part in (first, last))
    except ValueError:
        raise UserError(f"bad window {text!r}: write the seconds, such as 1.5:3") from None
    window = recording.moment_at(a), recording.moment_at(b)
    if window[0] > window[1]:
        raise UserError(f"bad window {text!r}: it ends before it begins")
    return window


def _check(command: list[str], image: Path, state: State) -> str | None:
    """What the command said when it failed."""
    environment = os.environ | {"SHADOWBELL_CRASH_NS": str(state.time)}
    words = [word.replace("{}", str(image)) for word in command]
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
        )
    except OSError as error:
        raise UserError(f"can't run {words[0]}: {error.strerror}") from error
    return f"exit code {done.returncode}\n{done.stdout}" if done.returncode else None


def _describe(state: State) -> str:
    after = (state.time - state.recording.times[0]) / 1e9 if state.moment else 0.0
    return f"power failed after entry {state.moment} ({after:.3f} s), {state.lost} changes lost"
