"""Plugging a disk into a running guest and out again (MSI: QEMU 11.1 can't unplug MSI-X)."""

from shadowbell.guest import Guest, Served, disk
from shadowbell.guest.demonstration import find_namespace
from shadowbell.guest.fio import verify


def appear(guest: Guest, served: Served) -> str:
    guest.plug(disk(served.socket("msi"), id="hot", bus="slot0"))
    guest.check("for i in $(seq 200); do grep -qs msi /sys/class/nvme/*/serial && break;"
                " sleep 0.1; done; sleep 0.5")  # fmt: skip
    return find_namespace(guest, "msi")


def test_unplug_and_plug_again(guest: Guest, served: Served) -> None:
    device = appear(guest, served)
    verify(guest, device, size="4M")
    digest = f"dd if={device} bs=1M count=4 iflag=direct 2>/dev/null | sha256sum"
    before = guest.check(digest)
    guest.unplug("hot")
    assert "msi" not in guest.check("cat /sys/class/nvme/*/serial")
    again = appear(guest, served)
    assert guest.check(digest.replace(device, again)) == before
    verify(guest, again, size="4M")
    guest.unplug("hot")
