"""ext4 and XFS, made and used in the guest, survive every power failure of an honest disk."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import pytest
from power_failure import EXT4, XFS, Laboratory, Life
from synced_files import Workload


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    with Laboratory(tmp_path_factory.mktemp("power")) as laboratory:
        yield laboratory


@pytest.fixture(
    scope="module",
    params=[(EXT4, 4096), (XFS, 512)],
    ids=["ext4-4096", "xfs-512"],
)
def life(laboratory: Laboratory, request: pytest.FixtureRequest) -> Life:
    kind, lba = request.param
    return laboratory.live(kind, Workload(11, workers=2, steps=25), lba)


def test_what_was_synced_survives_a_power_failure(laboratory: Laboratory, life: Life) -> None:
    """Half of the disks keep or lose whole commands, half of them each logical block."""
    commands = life.crashes(12, seed=1, granularity="command")
    blocks = life.crashes(12, seed=2, granularity="block")
    verdicts = list(laboratory.check(life, chain(commands, blocks)))
    wrong = [str(verdict) for verdict in verdicts if verdict.wrong]
    assert not wrong, "\n".join(wrong)
    assert len(verdicts) == 24
    assert sum(verdict.replayed for verdict in verdicts) > len(verdicts) // 2


def test_a_disk_that_drops_flushes_is_found_out(laboratory: Laboratory, life: Life) -> None:
    """The same on what a lying disk would have left: the check has to fail."""
    lying = life.crashes(6, seed=3, device="drops-flushes")
    assert any(verdict.wrong for verdict in laboratory.check(life, lying))
