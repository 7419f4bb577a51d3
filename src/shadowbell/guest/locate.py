"""Finds what a guest needs: a QEMU that speaks vfio-user, a kernel and an initramfs.

Standard library only and free of imports of ours: the scripts in tools/ use it before the
project's environment exists.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

OLDEST_QEMU = (10, 1)  # the first release with vfio-user-pci
QEMU = "qemu-system-x86_64"
QEMU_TOOLS = ("qemu-img", "qemu-nbd", "qemu-storage-daemon")


@dataclass(frozen=True)
class Qemu:
    program: Path
    version: tuple[int, int]
    ovmf: tuple[Path, Path] | None  # code and variables; None: no UEFI firmware at hand


@dataclass(frozen=True)
class Images:
    """What `make guest` builds, in its folder."""

    folder: Path

    @property
    def initramfs(self) -> Path:
        return self.folder / "initramfs.cpio"

    @property
    def boot_disk(self) -> Path:
        return self.folder / "boot.img"

    @property
    def accelerator(self) -> Literal["kvm", "tcg"]:
        """What `make guest` found to run this guest here."""
        found = self.folder / "accelerator"
        return "kvm" if found.exists() and found.read_text().strip() == "kvm" else "tcg"

    @property
    def kernels(self) -> dict[str, Path]:
        """Kernels by release ("6.1", "6.12"), oldest first."""
        found = {path.name.removeprefix("vmlinuz-"): path for path in self.folder.glob("vmlinuz-*")}
        return dict(sorted(found.items(), key=lambda item: [int(n) for n in item[0].split(".")]))


def cache_directories() -> Iterator[Path]:
    """Where fetched and built things may be, best first."""
    if chosen := os.environ.get("SHADOWBELL_CACHE"):
        yield Path(chosen).resolve()
        return
    project = Path(__file__).resolve().parents[3]
    if (project / "pyproject.toml").exists():
        yield project / ".cache"
    yield Path("~/.cache/shadowbell").expanduser()


def probe_qemu(program: Path) -> tuple[int, int] | None:
    """The version of a QEMU that can attach a vfio-user device; None when it can't."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30)
        match = re.search(r"version (\d+)\.(\d+)", said.stdout)
        if match is None or (version := (int(match[1]), int(match[2]))) < OLDEST_QEMU:
            return None
        # Not the list of all devices: for that QEMU loads every module it can find, and dies of
        # those that another QEMU on this system has.
        device = subprocess.run(
            [program, "-device", "vfio-user-pci,help"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return version if device.stdout.startswith("vfio-user-pci options") else None


def find_qemu() -> Qemu | None:
    """QEMU on PATH when new enough, else the one that `make qemu` unpacked."""
    candidates = [Path(found)] if (found := shutil.which(QEMU)) else []
    candidates += [folder / "qemu/bin" / QEMU for folder in cache_directories()]
    for program in candidates:
        if program.exists() and (version := probe_qemu(program)) is not None:
            return Qemu(program, version, _find_ovmf(program))
    return None


def find_qemu_tool(name: str) -> Path | None:
    """One of `QEMU_TOOLS`: beside the QEMU that guests run in, else on PATH or unpacked."""
    qemu = find_qemu()
    beside = [qemu.program.parent] if qemu is not None else []
    on_path = [Path(found).parent] if (found := shutil.which(name)) else []
    unpacked = (folder / "qemu/bin" for folder in cache_directories())
    for folder in (*beside, *on_path, *unpacked):
        if (folder / name).exists():
            return folder / name
    return None


def _find_ovmf(program: Path) -> tuple[Path, Path] | None:
    for share in (program.parents[1] / "root/usr/share", Path("/usr/share")):
        code, variables = share / "OVMF/OVMF_CODE_4M.fd", share / "OVMF/OVMF_VARS_4M.fd"
        if code.exists() and variables.exists():
            return code, variables
    return None


def find_images() -> Images | None:
    for folder in cache_directories():
        images = Images(folder / "guest")
        if images.initramfs.exists() and images.kernels:
            return images
    return None
