"""What the tests of a served disk share, beside the fixtures of the folder above."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadowbell.driver import Doorbells

# The NBD servers of the back ends' tests are used here as well.
sys.path.insert(0, str(Path(__file__).parent.parent / "unit" / "block"))


@pytest.fixture(params=["trap", "shadow", "mapped"])
def way(request: pytest.FixtureRequest) -> Doorbells:
    """Each way to ring doorbells."""
    found: Doorbells = request.param
    return found


@pytest.fixture
def alarm() -> Iterator[None]:
    """Nothing here takes a minute: a hang in C must not hang the test run."""
    signal.alarm(100)
    yield
    signal.alarm(0)
