"""Fetch a QEMU that speaks vfio-user into the cache, from Debian's packages, without root.

Nothing is done where one is on PATH. The unpacked QEMU runs with the C library and libraries
that it was built against, through a wrapper: .cache/qemu/bin/qemu-system-x86_64.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import debian

sys.path.insert(0, str(debian.ROOT / "src"))
from shadowbell.guest import locate

SUITE = "trixie-backports"
PACKAGES = ("qemu-system-x86", "seabios", "ovmf")
LOADERS = {"amd64": "ld-linux-x86-64.so.2", "arm64": "ld-linux-aarch64.so.1"}

WRAPPER = """#!/bin/sh
# Debian's QEMU with its own libraries, wherever this folder is.
root=$(cd "$(dirname "$(readlink -f "$0")")/../root" && pwd) || exit 1
QEMU_MODULE_DIR=$root/usr/lib/{triplet}/qemu exec \\
  "$root/usr/lib/{triplet}/{loader}" --library-path "$root/usr/lib/{triplet}" \\
  "$root/usr/bin/qemu-system-x86_64" \\
  -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"
"""


def build(folder: Path) -> None:
    architecture = debian.host_architecture()
    if architecture not in LOADERS:
        raise debian.ToolError(f"no QEMU to fetch for {architecture}: install QEMU 10.1 or later")
    loader = LOADERS[architecture]
    debian.say(f"fetching QEMU from Debian {SUITE} (45 MB)")
    archive = debian.Archive(folder / "apt", ("trixie", SUITE), architecture)
    archive.update()
    packages = archive.fetch(PACKAGES, suite=SUITE)
    root = folder / "root"
    debian.unpack(packages, root)
    libraries = next(root.glob(f"usr/lib/*/{loader}")).parent
    wrapper = folder / "bin" / locate.QEMU
    wrapper.parent.mkdir(exist_ok=True)
    wrapper.write_text(WRAPPER.format(triplet=libraries.name, loader=loader))
    wrapper.chmod(0o755)
    shutil.rmtree(folder / "apt")
    for unused in ("usr/share/doc", "usr/share/locale", "usr/share/man"):
        shutil.rmtree(root / unused, ignore_errors=True)


def main() -> None:
    found = locate.find_qemu()
    if found is None:
        folder = debian.cache_directory() / "qemu"
        shutil.rmtree(folder, ignore_errors=True)  # an older or half-made one
        build(folder)
        found = locate.find_qemu()
        if found is None:
            raise debian.ToolError(f"the QEMU unpacked in {folder} does not run here")
    debian.say(f"QEMU {found.version[0]}.{found.version[1]}: {found.program}")


if __name__ == "__main__":
    debian.main(main)
