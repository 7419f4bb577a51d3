"""A guest whose memory is registered with io_uring."""

import time
from pathlib import Path

from shadowbell.cli.control import ask
from shadowbell.guest import Guest, Served, disk
from shadowbell.guest.demonstration import find_namespace
from shadowbell.guest.fio import run_fio, verify
from shadowbell.manage.control import Status

MIB = 1 << 20


def test_fio_verifies(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    arguments = ["--fixed-buffers", "--socket", "{folder}/s", "--serial", "fixed"]
    with Served([f"file:{image},lba=4096", *arguments]) as served:
        socket = str(served.socket("s"))
        with Guest([disk(socket)], cpus=2, memory="512M") as guest:
            device = find_namespace(guest, "fixed")
            guest.check("true")
            before = ask(socket, Status())
            assert before["pinned"] >= 512 * MIB
            result = verify(guest, device)
            options = "--rw=write --bsrange=4k-1M --blockalign=4k --iodepth=8 --size=32M"
            run_fio(guest, device, f"{options} --verify=crc32c --verify_state_save=0")
            after = ask(socket, Status())
            assert after["fixed_transfers"] - before["fixed_transfers"] >= result.total_ios
        assert "isn't registered" not in served.log
        # The pinning thread lets go of it after the guest has left.
        deadline = time.monotonic() + 10
        while pinned_kib(served.pid):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def pinned_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmPin"))
