"""A few rounds of what `make soak` does a hundred times: `kill -9` under load."""

import subprocess
import sys
from pathlib import Path

import pytest

KILL = Path(__file__).resolve().parents[1] / "kill.py"


@pytest.mark.parametrize("lba", [512, 4096])
def test_a_killed_server_has_lost_nothing_that_it_completed(tmp_path: Path, lba: int) -> None:
    command = [sys.executable, str(KILL), "--kills", "5", "--lba", str(lba), "--folder", tmp_path]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "nothing completed was lost in 5 kills" in ended.stdout
