"""One server process with several controllers, one Linux guest with all of them attached."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadowbell.guest import Guest, Served, available, disk

TROUBLE = re.compile(
    r"(timeout, (aborting|disable|completion)|controller is down|I/O error|I/O Error|"
    r"Removing after probe failure|invalid id|Device not ready|Call Trace|BUG:)"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    mine = [item for item in items if here in item.path.parents]
    reason = available() if mine else None
    for item in mine:
        item.add_marker(pytest.mark.guest)
        item.add_marker(pytest.mark.timeout(400))
        if reason is not None and os.environ.get("CI"):
            pytest.exit(f"CI needs the guest tests: {reason}", returncode=1)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


def image(folder: Path, name: str, megabytes: int) -> Path:
    path = folder / name
    with path.open("wb") as file:
        file.truncate(megabytes << 20)
    return path


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Controllers by serial and socket: shadow, mapped, trap (no DBBUF), msi (to hot-plug)."""
    folder = tmp_path_factory.mktemp("images")
    small, large = image(folder, "512.img", 64), image(folder, "4096.img", 64)
    mapped, trap = image(folder, "mapped.img", 64), image(folder, "trap.img", 64)
    controllers = {
        "shadow": [
            "--namespace", "memory:64M",
            "--namespace", f"file:{small}",
            "--namespace", "memory:64M,lba=4096",
            "--namespace", f"file:{large},lba=4096",
        ],
        "mapped": [
            "--namespace", "memory:64M", "--namespace", f"file:{mapped},lba=4096",
            "--doorbells", "mapped",
        ],
        "trap": ["--namespace", "memory:64M,lba=4096", "--namespace", f"file:{trap}", "--no-dbbuf"],
        "msi": ["--namespace", "memory:64M", "--interrupts", "msi"],
    }  # fmt: skip
    arguments: list[str] = []
    for name, own in controllers.items():
        arguments += ["--and"] if arguments else []
        arguments += ["--socket", "{folder}/" + name, "--serial", name, *own]
    with Served(arguments) as server:
        yield server
        server.check_alive()


@pytest.fixture(scope="session")
def booted(served: Served) -> Iterator[Guest]:
    devices = [disk(served.socket(name)) for name in ("shadow", "mapped", "trap")]
    with Guest(devices, cpus=2, slots=1) as guest:
        yield guest


@pytest.fixture
def guest(booted: Guest, served: Served) -> Iterator[Guest]:
    """The running guest; the test fails when its kernel complained about a disk."""
    booted.check("dmesg -c >/dev/null")
    yield booted
    served.check_alive()
    messages = booted.check("dmesg")
    complaints = [line for line in messages.splitlines() if TROUBLE.search(line)]
    assert not complaints, "\n".join(complaints)
