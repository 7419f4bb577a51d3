"""The data plane's constants are C; the specification package has the same facts."""

import re
from pathlib import Path

import shadowbell.dataplane
from shadowbell.nvme import Status
from shadowbell.nvme.status import DO_NOT_RETRY


def test_status_codes_agree() -> None:
    """Every status that the data plane returns is the specification's of about that name."""
    text = (Path(shadowbell.dataplane.__file__).parent / "status.pxd").read_text()
    codes = {name: int(value, 16) for name, value in re.findall(r"(\w+) = (0x\w+)", text)}
    assert codes.pop("DO_NOT_RETRY") == DO_NOT_RETRY
    assert codes.pop("SUCCESS") == Status.SUCCESSFUL_COMPLETION
    for name, value in codes.items():
        words = set(Status(value).name.split("_"))
        assert set(name.split("_")) <= words, (name, Status(value))
