"""fio inside the guest."""

from __future__ import annotations

import json
from dataclasses import dataclass

from .machine import Guest, GuestError


@dataclass(frozen=True)
class FioResult:
    """Of one job. Latencies are submission to completion as the guest saw them, microseconds."""

    iops: float
    p50: float
    p99: float
    total_ios: int
    total_bytes: int


def run_fio(guest: Guest, device: str, options: str, timeout: float = 120) -> FioResult:
    """Runs one job on a device of the guest ("/dev/nvme0n1"); GuestError when fio finds an error.

    options are fio's own, such as "--rw=randread --bs=4k --iodepth=32 --time_based --runtime=2".
    """
    command = (
        f"fio --name=job --filename={device} --ioengine=libaio --direct=1 --randrepeat=0"
        f" --output-format=json {options}"
    )
    code, output = guest.run(command, timeout)
    if code != 0:
        raise GuestError(f"fio failed with {code}: {command}\n{output[-3000:]}")
    # fio may say something before its JSON.
    job = json.loads(output[output.index("{") :])["jobs"][0]
    if job["error"]:
        raise GuestError(f"fio found error {job['error']}: {command}\n{output[-3000:]}")
    busiest = max(job["read"], job["write"], key=lambda side: int(side["total_ios"]))
    percentile = busiest["clat_ns"].get("percentile", {})
    return FioResult(
        iops=busiest["iops"],
        p50=percentile.get("50.000000", 0) / 1000,
        p99=percentile.get("99.000000", 0) / 1000,
        total_ios=job["read"]["total_ios"] + job["write"]["total_ios"],
        total_bytes=job["read"]["io_bytes"] + job["write"]["io_bytes"],
    )


def verify(guest: Guest, device: str, *, size: str = "8M", block: str = "4k") -> FioResult:
    """Random writes at queue depth 32 over `size` bytes, each read back and its crc32c compared."""
    return run_fio(
        guest,
        device,
        f"--rw=randwrite --bs={block} --iodepth=32 --size={size} --verify=crc32c"
        " --verify_fatal=1 --verify_state_save=0 --fallocate=none",
    )
