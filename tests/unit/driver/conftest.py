from collections.abc import Iterator

import pytest
from fake_device import FakeDevice


@pytest.fixture
def device() -> Iterator[FakeDevice]:
    with FakeDevice() as made:
        yield made
