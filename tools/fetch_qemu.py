"""Fetch a QEMU that speaks vfio-user into the cache, from Debian's packages, without root.

Nothing is done where one is on PATH. The unpacked QEMU and its tools run with the C library and
libraries that they were built against, through wrappers: .cache/qemu/bin/qemu-system-x86_64.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import debian

sys.path.insert(0, str(debian.ROOT / "src"))
from shadowbell.guest import locate

SUITE = "trixie-backports"
SYSTEM = ("qemu-system-x86", "seabios", "ovmf")
TOOLS = ("qemu-utils",)
LOADERS = {"amd64": "ld-linux-x86-64.so.2", "arm64": "ld-linux-aarch64.so.1"}

WRAPPER = """#!/bin/sh
# Debian's {program} with its own libraries, wherever this folder is.
root=$(cd "$(dirname "$(readlink -f "$0")")/../root" && pwd) || exit 1
QEMU_MODULE_DIR=$root/usr/lib/{triplet}/qemu exec \\
  "$root/usr/lib/{triplet}/{loader}" --library-path "$root/usr/lib/{triplet}" \\
  "$root/usr/bin/{program}" {options}"$@"
"""
# Where QEMU finds its firmware.
OPTIONS = {locate.QEMU: '-L "$root/usr/share/qemu" -L "$root/usr/share/seabios" '}


def build(folder: Path, wanted: Sequence[str]) -> None:
    """Unpack packages beside what the folder has, which may be in use: no file of it changes."""
    architecture = debian.host_architecture()
    if architecture not in LOADERS:
        raise debian.ToolError(f"no QEMU to fetch for {architecture}: install QEMU 10.1 or later")
    loader = LOADERS[architecture]
    debian.say(f"fetching {', '.join(wanted)} from Debian {SUITE}")
    archive = debian.Archive(folder / "apt", ("trixie", SUITE), architecture)
    archive.update()
    packages = archive.fetch(wanted, suite=SUITE)
    fresh, root = folder / "fresh", folder / "root"
    shutil.rmtree(fresh, ignore_errors=True)
    debian.unpack(packages, fresh)
    for unused in ("usr/share/doc", "usr/share/locale", "usr/share/man"):
        shutil.rmtree(fresh / unused, ignore_errors=True)
    add_missing(fresh, root)
    libraries = next(root.glob(f"usr/lib/*/{loader}")).parent
    for program in (locate.QEMU, *locate.QEMU_TOOLS):
        wrapper = folder / "bin" / program
        if (root / "usr/bin" / program).exists() and not wrapper.exists():
            wrapper.parent.mkdir(exist_ok=True)
            wrapper.write_text(
                WRAPPER.format(
                    program=program,
                    triplet=libraries.name,
                    loader=loader,
                    options=OPTIONS.get(program, ""),
                )
            )
            wrapper.chmod(0o755)
    shutil.rmtree(folder / "apt")
    shutil.rmtree(fresh)


def add_missing(source: Path, target: Path) -> None:
    """Move what the target lacks."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in source.iterdir():
        place = target / entry.name
        if entry.is_dir() and not entry.is_symlink() and place.is_dir():
            add_missing(entry, place)
        elif not place.exists() and not place.is_symlink():
            entry.rename(place)


def main() -> None:
    folder = debian.cache_directory() / "qemu"
    found = locate.find_qemu()
    if found is None:
        shutil.rmtree(folder, ignore_errors=True)  # an older or half-made one
        build(folder, (*SYSTEM, *TOOLS))
        found = locate.find_qemu()
        if found is None:
            raise debian.ToolError(f"the QEMU unpacked in {folder} does not run here")
    elif folder in found.program.resolve().parents and not all(
        (folder / "bin" / tool).exists() for tool in locate.QEMU_TOOLS
    ):
        build(folder, TOOLS)  # it was unpacked before its tools were wanted
    debian.say(f"QEMU {found.version[0]}.{found.version[1]}: {found.program}")


if __name__ == "__main__":
    debian.main(main)
