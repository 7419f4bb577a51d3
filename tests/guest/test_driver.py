"""Linux' nvme driver binds, and rings the way the controller offers."""

import pytest

from shadowbell.guest import Guest, Served
from shadowbell.guest.demonstration import find_namespace
from shadowbell.guest.fio import run_fio

QD32 = "--rw=randread --bs=4k --iodepth=32 --time_based --runtime=2"


def test_every_controller_is_live_with_its_namespaces(booted: Guest) -> None:
    script = "for c in /sys/class/nvme/nvme*; do echo $(cat $c/serial $c/state $c/model); done"
    lines = booted.check(script).splitlines()
    assert sorted(lines) == [
        f"{name} live shadowbell NVMe" for name in ("mapped", "shadow", "trap")
    ]
    namespaces = booted.check("cat /sys/class/nvme/nvme*/nvme*n*/nsid").split()
    assert sorted(namespaces) == ["1", "1", "1", "2", "2", "2", "3", "4"]
    # An I/O queue for each of the two processors, and the admin queue.
    assert booted.check("cat /sys/class/nvme/nvme*/queue_count").split() == ["3", "3", "3"]


def test_namespaces_have_their_size_and_lba_format(booted: Guest) -> None:
    for nsid, lba in ((1, 512), (2, 512), (3, 4096), (4, 4096)):
        name = find_namespace(booted, "shadow", nsid).removeprefix("/dev/")
        size, block = booted.check(
            f"cd /sys/block/{name}; cat size queue/logical_block_size"
        ).split()
        assert int(size) * 512 == 64 << 20
        assert int(block) == lba


def test_shadow_doorbells_are_used(guest: Guest, served: Served) -> None:
    before = served.ledger("shadow")
    result = run_fio(guest, find_namespace(guest, "shadow"), QD32)
    used = served.ledger("shadow") - before
    assert used.commands >= result.total_ios
    assert used.shadow_finds > 0
    assert used.doorbells_per_command < 0.05


def test_mapped_doorbells_are_never_trapped(guest: Guest, served: Served) -> None:
    before = served.ledger("mapped")
    result = run_fio(guest, find_namespace(guest, "mapped"), QD32)
    used = served.ledger("mapped") - before
    assert used.commands >= result.total_ios
    assert used.doorbells == 0


def test_without_dbbuf_every_doorbell_is_a_register_write(guest: Guest, served: Served) -> None:
    before = served.ledger("trap")
    result = run_fio(guest, find_namespace(guest, "trap"), QD32)
    used = served.ledger("trap") - before
    assert used.commands >= result.total_ios
    assert used.shadow_finds == 0
    assert used.doorbells > 0


@pytest.mark.parametrize("name", ["shadow", "mapped", "trap"])
def test_an_idle_guest_rings_nothing(guest: Guest, served: Served, name: str) -> None:
    before = served.ledger(name)
    guest.check("sleep 1")
    assert (served.ledger(name) - before).commands == 0
