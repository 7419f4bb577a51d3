"""Controller resets under load, and the guest restarting on the same server."""

from shadowbell.guest import Guest, Served
from shadowbell.guest.demonstration import find_namespace
from shadowbell.guest.fio import verify


def controller(guest: Guest, serial: str) -> str:
    device = find_namespace(guest, serial)
    return device[: device.rindex("n")].removeprefix("/dev/")


def test_resets_under_verified_writes_lose_nothing(guest: Guest) -> None:
    for serial in ("shadow", "mapped", "trap"):
        name, device = controller(guest, serial), find_namespace(guest, serial, 2)
        guest.check(
            f"(sleep 1.5; for i in 1 2 3; do echo 1 >/sys/class/nvme/{name}/reset_controller;"
            " sleep 0.3; done; echo done) >/tmp/resets 2>&1 &"
        )
        verify(guest, device, size="24M")
        said = guest.check("until grep -q done /tmp/resets; do sleep 0.1; done; cat /tmp/resets")
        assert said.strip() == "done"
        assert guest.check(f"cat /sys/class/nvme/{name}/state").strip() == "live"


def test_nvme_reset_brings_shadow_doorbells_back(guest: Guest, served: Served) -> None:
    name = controller(guest, "shadow")
    guest.check(f"nvme reset /dev/{name}")
    before = served.ledger("shadow")
    verify(guest, find_namespace(guest, "shadow"), size="4M")
    used = served.ledger("shadow") - before
    assert used.shadow_finds > 0
    assert used.doorbells_per_command < 0.05


def test_reboot_on_the_same_server(guest: Guest, served: Served) -> None:
    def digest() -> str:
        device = find_namespace(guest, "shadow")  # numbered anew by every boot
        return guest.check(f"dd if={device} bs=1M count=4 iflag=direct 2>/dev/null | sha256sum")

    device = find_namespace(guest, "shadow")
    guest.check(f"dd if=/dev/urandom of={device} bs=1M count=4 oflag=direct")
    before = digest()
    guest.reboot()
    assert digest() == before
    for serial in ("shadow", "mapped", "trap"):
        verify(guest, find_namespace(guest, serial), size="4M")
