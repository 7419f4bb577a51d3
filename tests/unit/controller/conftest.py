from collections.abc import Iterator

import pytest
from controller_fakes import Host


@pytest.fixture
def host() -> Iterator[Host]:
    """A host whose controller is enabled."""
    made = Host()
    made.enable()
    yield made
    made.controller.close()
