"""Firmware boots from a namespace, with traditional doorbells."""

import hashlib
import shutil
from pathlib import Path

import pytest

from shadowbell.guest import Guest, Served, disk
from shadowbell.guest.locate import find_images, find_qemu
from shadowbell.guest.machine import Firmware


@pytest.mark.parametrize(
    ("firmware", "doorbells"), [("bios", "trap"), ("uefi", "trap"), ("uefi", "mapped")]
)
def test_boot_from_the_namespace(tmp_path: Path, firmware: Firmware, doorbells: str) -> None:
    """GRUB, the kernel and its initramfs all come from the disk: nothing else could be booted."""
    qemu, images = find_qemu(), find_images()
    assert qemu is not None
    assert images is not None
    if firmware == "uefi" and qemu.ovmf is None:
        pytest.skip("no UEFI firmware beside QEMU: install ovmf")
    copy = tmp_path / "boot.img"
    shutil.copy(images.boot_disk, copy)
    with (
        Served([str(copy), "--socket", "{folder}/disk", "--doorbells", doorbells]) as served,
        Guest([disk(served.socket("disk"), bootindex=0)], firmware=firmware) as guest,
    ):
        assert f"GRUB on {firmware}: loading the kernel" in guest.console
        assert f"shadowbell guest: loaded by {firmware}" in guest.console
        # Linux took over from the firmware on the same controller.
        digest = guest.check("sha256sum /dev/nvme0n1").split()[0]
        assert digest == hashlib.sha256(images.boot_disk.read_bytes()).hexdigest()
        assert served.ledger("disk").commands > 100
