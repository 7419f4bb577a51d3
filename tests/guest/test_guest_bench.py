"""The disks that `shadowbell bench --guest` compares ours with can be had and counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowbell.bench.guest_devices import STORAGE_DAEMON, backend, qemu_nvme, vhost_user_blk
from shadowbell.bench.in_guest import _boot_and_measure
from shadowbell.config import parse_namespace
from shadowbell.guest.locate import find_qemu_tool

NULL = "null:1G"


def ignore(text: str) -> None:
    """Progress that nobody reads."""


def test_qemus_doorbell_writes_are_counted() -> None:
    with (
        backend(parse_namespace(NULL), NULL) as store,
        qemu_nvme(store, ioeventfd=False) as setup,
    ):
        (one,) = _boot_and_measure(setup, [1], 0.5, 1, ignore)
    assert one.result.iops > 0
    # QEMU's nvme asks for both doorbells of every command; a few are in flight at the ends.
    assert one.doorbells == pytest.approx(2, rel=0.2)


def test_vhost_user_blk_reads(tmp_path: Path) -> None:
    program = find_qemu_tool(STORAGE_DAEMON)
    if program is None:
        pytest.skip(f"no {STORAGE_DAEMON}: run `make qemu`")
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(64 << 20))
    with (
        backend(parse_namespace(str(image)), str(image)) as store,
        vhost_user_blk(store, program) as setup,
    ):
        (one,) = _boot_and_measure(setup, [4], 0.5, 1, ignore)
    assert one.result.iops > 0
    assert one.interrupts is not None
    assert one.interrupts > 0
