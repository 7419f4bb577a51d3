"""A filesystem outlives a reboot, another kernel, and a restart of the server."""

from pathlib import Path

from shadowbell.guest import Guest, Served, disk
from shadowbell.guest.fio import verify

DEVICE = "/dev/nvme0n1"
CHECKSUM = "cd /mnt && find . -type f | sort | xargs sha256sum | sha256sum; cd /"


def test_ext4_outlives_reboot_and_restart(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(128 << 20)
    with Served([str(image), "--socket", "{folder}/disk"]) as served:
        with Guest([disk(served.socket("disk"))], kernel="6.1") as guest:
            assert guest.kernel_release.startswith("6.1.")
            guest.check(f"mkfs.ext4 -q {DEVICE} && mount {DEVICE} /mnt")
            guest.check(
                "cp -r /usr/sbin /init /mnt && dd if=/dev/urandom of=/mnt/noise bs=1M count=4"
            )
            guest.check("mkdir /mnt/many && for i in $(seq 300); do echo $i >/mnt/many/$i; done")
            written = guest.check(CHECKSUM)
            guest.check(f"umount /mnt && fsck.ext4 -f -n {DEVICE}")

            guest.reboot()
            guest.check(f"fsck.ext4 -f -n {DEVICE} && mount {DEVICE} /mnt")
            assert guest.check(CHECKSUM) == written
            guest.check("echo more >/mnt/more; sync; rm /mnt/more; umount /mnt")
        assert served.stop() == 0
        served.start()
        with Guest([disk(served.socket("disk"))]) as guest:
            assert not guest.kernel_release.startswith("6.1.")
            guest.check(f"fsck.ext4 -f -n {DEVICE} && mount -o ro {DEVICE} /mnt")
            assert guest.check(CHECKSUM) == written
            guest.check("umount /mnt")
            verify(guest, DEVICE)
