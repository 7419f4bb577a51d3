"""Makes a disk image that BIOS and UEFI firmware both boot: GRUB, a kernel, a small initramfs.

MBR layout: GRUB's boot sector, GRUB's core in the gap after it, then one FAT partition that is
also the EFI system partition. No loop device and no root: mtools and grub-mkimage write files.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

KERNEL = "6.12"
PACKAGES = ("grub-common", "grub-pc-bin", "grub-efi-amd64-bin", "mtools")
SECTOR = 512
PARTITION_START = 2048
PARTITION_SECTORS = 48 * 2048

CONFIG = """\
serial --unit=0 --speed=115200
terminal_output serial
search --no-floppy --file --set=root /shadowbell.kernel
echo "GRUB on {loader}: loading the kernel"
linux /shadowbell.kernel console=ttyS0 quiet shadowbell.loader={loader}
initrd /shadowbell.initrd
boot
"""
MODULES = (
    "part_msdos",
    "fat",
    "search",
    "search_fs_file",
    "serial",
    "terminal",
    "echo",
    "linux",
    "boot",
)

Run = Callable[..., str]


def build(image: Path, root: Path, kernel: Path, initramfs: bytes, run: Run) -> None:
    """`root` holds the unpacked PACKAGES; run(root, program, *arguments, **environment) uses it."""
    work = image.with_suffix(".tmp")
    work.mkdir()
    (work / "initrd").write_bytes(initramfs)

    def grub(platform: str, loader: str, output: Path, *modules: str) -> None:
        (work / "grub.cfg").write_text(CONFIG.format(loader=loader))
        run(
            root,
            "usr/bin/grub-mkimage",
            "-O",
            platform,
            "-d",
            root / "usr/lib/grub" / platform,
            "-c",
            work / "grub.cfg",
            "-p",
            "/grub",
            "-o",
            output,
            *MODULES,
            *modules,
        )

    grub("i386-pc", "bios", work / "core.img", "biosdisk")
    grub("x86_64-efi", "uefi", work / "bootx64.efi")

    partition = work / "partition"

    def mtools(command: str, *arguments: str | Path) -> None:
        run(
            root,
            "usr/bin/mtools",
            "-c",
            command,
            "-i",
            partition,
            *arguments,
            MTOOLS_SKIP_CHECK="1",
        )

    mtools(
        "mformat",
        "-C",
        "-F",
        "-T",
        str(PARTITION_SECTORS),
        "-h",
        "255",
        "-s",
        "63",
        "-H",
        str(PARTITION_START),
        "::",
    )
    mtools("mmd", "::/EFI", "::/EFI/BOOT")
    mtools("mcopy", work / "bootx64.efi", "::/EFI/BOOT/BOOTX64.EFI")
    mtools("mcopy", kernel, "::/shadowbell.kernel")
    mtools("mcopy", work / "initrd", "::/shadowbell.initrd")

    core = (work / "core.img").read_bytes()
    if len(core) > (PARTITION_START - 1) * SECTOR:
        raise ValueError("GRUB's core does not fit before the partition")
    boot = bytearray((root / "usr/lib/grub/i386-pc/boot.img").read_bytes())
    # Entry 1: active, EFI system partition (EFh), addressed by LBA only.
    boot[446:462] = struct.pack(
        "<B3sB3sII",
        0x80,
        b"\xfe\xff\xff",
        0xEF,
        b"\xfe\xff\xff",
        PARTITION_START,
        PARTITION_SECTORS,
    )
    boot[462:510] = bytes(48)
    boot[510:512] = b"\x55\xaa"
    with image.open("wb") as disk:
        disk.write(boot)
        disk.write(core)
        disk.seek(PARTITION_START * SECTOR)
        disk.write(partition.read_bytes())
        disk.truncate((PARTITION_START + PARTITION_SECTORS) * SECTOR)
    for path in work.iterdir():
        path.unlink()
    work.rmdir()
