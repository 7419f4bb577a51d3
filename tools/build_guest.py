"""Build the guest for tests and demo from Debian's packages, without root.

In .cache/guest: vmlinuz-6.1 (Debian 12) and vmlinuz-6.12 (Debian 13), initramfs.cpio with fio,
nvme-cli, e2fsprogs and xfsprogs, boot.img, a disk that BIOS and UEFI firmware boot (GRUB, 6.12, a
small initramfs), and accelerator, what runs them here.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import boot_disk
import debian
from initramfs import Initramfs

sys.path.insert(0, str(debian.ROOT / "src"))
from shadowbell.guest import locate

KERNELS = {"6.1": "bookworm", "6.12": "trixie"}
PROGRAMS = (
    "usr/bin/fio",
    "usr/sbin/nvme",
    "usr/sbin/mke2fs",
    "usr/sbin/e2fsck",
    "usr/sbin/mkfs.xfs",
    "usr/sbin/xfs_repair",
)
ALIASES = {"usr/sbin/mkfs.ext4": "mke2fs", "usr/sbin/fsck.ext4": "e2fsck"}
PACKAGES = ("fio", "nvme-cli", "e2fsprogs", "xfsprogs", "busybox-static", *boot_disk.PACKAGES)
# For the agent's port, and QEMU's own disk that bench compares with; in dependency order.
MODULES = {
    "6.1": (
        "virtio",
        "virtio_ring",
        "virtio_pci_legacy_dev",
        "virtio_pci_modern_dev",
        "virtio_pci",
        "virtio_console",
        "virtio_blk",
    ),
    "6.12": ("virtio_blk",),
}
# In a folder of their own, for who asks: only one test needs them, and every boot would load them.
ON_DEMAND = {"6.12": {"xfs": ("libcrc32c", "xfs")}}
LOADER = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
INIT = debian.ROOT / "tools/guest/init"


def library_path(root: Path) -> str:
    libraries = root / "usr/lib/x86_64-linux-gnu"
    return f"{libraries}:{libraries}/ceph"  # fio links ceph's private library


def run_unpacked(root: Path, program: str, *arguments: str | Path, **environment: str) -> str:
    """Runs a program of the unpacked packages with its own libraries."""
    return debian.run(
        [root / LOADER, "--library-path", library_path(root), root / program, *arguments],
        **environment,
    )


def libraries(root: Path, program: str) -> set[Path]:
    listing = debian.run(
        [root / LOADER, "--library-path", library_path(root), "--list", root / program]
    )
    return {Path(path) for path in re.findall(r"=> (\S+)", listing)}


def base(root: Path) -> Initramfs:
    archive = Initramfs()
    archive.device("dev/console", 5, 1)
    archive.file("init", INIT.read_bytes())
    archive.copy("bin/busybox", root / "usr/bin/busybox")
    return archive


def full(root: Path) -> Initramfs:
    archive = base(root)
    # Libraries sit flat where the loader looks by itself.
    archive.copy("lib64/ld-linux-x86-64.so.2", root / LOADER)
    for program in PROGRAMS:
        archive.copy(program, root / program)
        for library in sorted(libraries(root, program)):
            if "ld-linux" not in library.name:
                archive.copy(f"usr/lib/x86_64-linux-gnu/{library.name}", library)
    for name, target in ALIASES.items():
        archive.link(name, target)
    for release, modules in MODULES.items():
        (tree,) = modules_of(root, release)
        for order, module in enumerate(modules):
            archive.file(f"modules/{tree.name}/{order}-{module}.ko", read_module(tree, module))
        for name, needed in ON_DEMAND.get(release, {}).items():
            for order, module in enumerate(needed):
                path = f"modules/{tree.name}/{name}/{order}-{module}.ko"
                archive.file(path, read_module(tree, module))
    return archive


def modules_of(root: Path, release: str) -> list[Path]:
    folders = (root / "lib/modules", root / "usr/lib/modules")
    return list({tree.resolve() for each in folders for tree in each.glob(f"{release}.*")})


def read_module(tree: Path, name: str) -> bytes:
    """A kernel module, unpacked: busybox loads no compressed ones."""
    (path,) = tree.rglob(f"{name}.ko*")
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def build(folder: Path) -> None:
    if debian.host_architecture() != "amd64":
        raise debian.ToolError("the guest is built on an x86-64 machine only")
    debian.say("fetching the guest's kernels and programs from Debian (130 MB)")
    archive = debian.Archive(folder / "apt", ("trixie", "bookworm"), "amd64")
    archive.update()
    root = folder / "root"
    debian.unpack(archive.fetch(PACKAGES, suite="trixie"), root)
    for release, suite in KERNELS.items():
        packages = archive.fetch([f"linux-image-cloud-amd64/{suite}"], suite=suite)
        debian.unpack([deb for deb in packages if deb.name.startswith("linux-image-")], root)
        shutil.copy(
            next((root / "boot").glob(f"vmlinuz-{release}.*")), folder / f"vmlinuz-{release}"
        )
    debian.say("building the initramfs and the bootable disk")
    (folder / "initramfs.cpio").write_bytes(full(root).finish())
    boot_disk.build(
        folder / "boot.img",
        root,
        folder / f"vmlinuz-{boot_disk.KERNEL}",
        base(root).finish(),
        run_unpacked,
    )
    shutil.rmtree(folder / "apt")
    shutil.rmtree(root)
    (folder / "accelerator").write_text(accelerator(folder) + "\n")


def accelerator(folder: Path) -> str:
    """ "kvm" where this guest boots under it, else "tcg": nested KVM often runs no real kernel."""
    qemu = locate.find_qemu()
    if qemu is None or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    console = folder / "kvm.log"
    with (
        console.open("wb") as log,
        subprocess.Popen(
            [
                qemu.program,
                "-nodefaults",
                "-display",
                "none",
                "-machine",
                "q35,accel=kvm",
                "-cpu",
                "host",
                "-m",
                "512M",
                "-serial",
                "stdio",
                "-kernel",
                folder / f"vmlinuz-{boot_disk.KERNEL}",
                "-initrd",
                folder / "initramfs.cpio",
                "-append",
                "console=ttyS0 quiet shadowbell.loader=kvm",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        ) as process,
    ):
        deadline = time.monotonic() + 15
        said = b""
        # A guest that KVM can't run is paused with a message, or just stays silent.
        while (
            time.monotonic() < deadline and process.poll() is None and b"KVM internal" not in said
        ):
            time.sleep(0.1)
            said = console.read_bytes()
            if b"loaded by kvm" in said:
                break
        process.kill()
    console.unlink()
    return "kvm" if b"loaded by kvm" in said else "tcg"


def recipe() -> str:
    """Changes when what is built would change."""
    sources = sorted([INIT, *(debian.ROOT / "tools").glob("*.py")])
    names = {"build_guest.py", "boot_disk.py", "initramfs.py", "init"}
    return hashlib.sha256(b"".join(p.read_bytes() for p in sources if p.name in names)).hexdigest()


def main() -> None:
    folder = debian.cache_directory() / "guest"
    stamp = folder / "recipe"
    if not (stamp.exists() and stamp.read_text() == recipe()):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        build(folder)
        stamp.write_text(recipe())
    debian.say(f"guest: {folder}")


if __name__ == "__main__":
    debian.main(main)
