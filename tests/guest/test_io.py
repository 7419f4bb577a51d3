"""fio writes at random, reads back and compares crc32c, on every kind of namespace."""

import pytest

from shadowbell.guest import Guest
from shadowbell.guest.demonstration import find_namespace
from shadowbell.guest.fio import run_fio, verify


@pytest.mark.parametrize(
    ("controller", "nsid"),
    [
        pytest.param("shadow", 1, id="shadow-memory-512"),
        pytest.param("shadow", 2, id="shadow-file-512"),
        pytest.param("shadow", 3, id="shadow-memory-4096"),
        pytest.param("shadow", 4, id="shadow-file-4096"),
        pytest.param("mapped", 1, id="mapped-memory-512"),
        pytest.param("mapped", 2, id="mapped-file-4096"),
        pytest.param("trap", 1, id="trap-memory-4096"),
        pytest.param("trap", 2, id="trap-file-512"),
    ],
)
def test_random_writes_verify(guest: Guest, controller: str, nsid: int) -> None:
    result = verify(guest, find_namespace(guest, controller, nsid))
    assert result.total_bytes >= 16 << 20  # written and read


@pytest.mark.parametrize("nsid", [1, 2])
def test_large_and_odd_transfers_verify(guest: Guest, nsid: int) -> None:
    """From one LBA to more than MDTS, which Linux splits: PRP lists and SGLs of every length."""
    run_fio(
        guest,
        find_namespace(guest, "shadow", nsid),
        "--rw=write --bsrange=512-2M --blockalign=512 --iodepth=8 --size=32M"
        " --verify=crc32c --verify_fatal=1 --verify_state_save=0",
    )


@pytest.mark.parametrize("nsid", [1, 2, 3, 4])
def test_discarded_blocks_read_back_as_zeros(guest: Guest, nsid: int) -> None:
    device = find_namespace(guest, "shadow", nsid)
    guest.check(
        f"yes x | head -c 4194304 >/tmp/pattern;"
        f" dd if=/tmp/pattern of={device} bs=1M oflag=direct conv=fsync;"
        f" blkdiscard -o 1048576 -l 1048576 {device}"
    )
    middle = guest.check(
        f"dd if={device} bs=1M skip=1 count=1 iflag=direct 2>/dev/null | tr -d '\\0' | wc -c"
    )
    around = guest.check(
        f"dd if={device} bs=1M count=1 iflag=direct 2>/dev/null | tr -d 'x\\n' | wc -c"
    )
    assert int(middle) == 0
    assert int(around) == 0
