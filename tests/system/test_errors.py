"""What a host is told when the storage fails: with files that really fail."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import failing_file
import pytest
from failing_file import FailingFile

from serving import Attach, Serve
from shadowbell.driver import CommandError, Host, QueuePair
from shadowbell.driver.admin import Event
from shadowbell.nvme import Feature, LogPage, Status
from shadowbell.nvme.events import EventConfiguration
from shadowbell.nvme.logs import CriticalWarning, ErrorInformation, SmartHealthInformation

MIB = 1 << 20
BLOCK = bytes(range(256)) * 2
RELIABILITY = Event(1, 0, LogPage.SMART_HEALTH_INFORMATION)


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[FailingFile]:
    if reason := failing_file.available():
        pytest.skip(reason)
    folder = tmp_path / "fuse"
    folder.mkdir()
    try:
        made = FailingFile(folder, 4 * MIB)
    except PermissionError as error:
        pytest.skip(f"can't mount: {error}")
    yield made
    made.close()


@pytest.fixture
def host(failing: FailingFile, serve: Serve, attach: Attach) -> Host:
    return attach(serve(str(failing.path)))


def failure(command: Callable[[], object]) -> tuple[int, bool]:
    """The status that a command fails with, and Do Not Retry."""
    with pytest.raises(CommandError) as caught:
        command()
    return caught.value.status, caught.value.completion.dnr


def smart(host: Host) -> SmartHealthInformation:
    return SmartHealthInformation(host.admin.get_log(LogPage.SMART_HEALTH_INFORMATION, 512))


def newest_error(host: Host) -> ErrorInformation:
    return ErrorInformation(host.admin.get_log(LogPage.ERROR_INFORMATION, 64))


GONE = (Status.NAMESPACE_NOT_READY, True)
AWAY = (Status.INTERNAL_PATH_ERROR, False)


@pytest.mark.parametrize(
    ("what", "code", "expected"),
    [
        ("read", errno.EIO, (Status.UNRECOVERED_READ_ERROR, False)),
        ("read", errno.ENODATA, (Status.UNRECOVERED_READ_ERROR, True)),
        ("read", errno.EILSEQ, (Status.UNRECOVERED_READ_ERROR, True)),
        ("read", errno.ENODEV, GONE),
        ("read", errno.ENXIO, GONE),
        ("read", errno.ESTALE, GONE),
        ("read", errno.ENOLINK, AWAY),
        ("read", errno.ENOTCONN, AWAY),
        ("read", errno.ETIMEDOUT, (Status.NAMESPACE_NOT_READY, False)),
        ("read", errno.ENOMEM, (Status.INTERNAL_ERROR, False)),
        ("read", errno.EINVAL, (Status.INTERNAL_ERROR, True)),
        ("write", errno.EIO, (Status.WRITE_FAULT, False)),
        ("write", errno.ENOSPC, (Status.CAPACITY_EXCEEDED, False)),
        ("write", errno.EDQUOT, (Status.CAPACITY_EXCEEDED, False)),
        ("write", errno.EROFS, (Status.NAMESPACE_IS_WRITE_PROTECTED, True)),
        ("write", errno.ENXIO, GONE),
        ("flush", errno.EIO, (Status.WRITE_FAULT, False)),
        ("flush", errno.ENOSPC, (Status.CAPACITY_EXCEEDED, False)),
        ("zero", errno.EIO, (Status.WRITE_FAULT, False)),
        ("zero", errno.ENOSPC, (Status.CAPACITY_EXCEEDED, False)),
    ],
)
def test_each_errno_has_its_status(
    failing: FailingFile, host: Host, what: str, code: int, expected: tuple[int, bool]
) -> None:
    queue = host.create_queue_pair()
    commands: dict[str, Callable[[], object]] = {
        "read": lambda: queue.read(1, 8, 1),
        "write": lambda: queue.write(1, 8, BLOCK),
        "flush": lambda: queue.flush(1),
        "zero": lambda: queue.write_zeroes(1, 8, 8),
    }
    commands[what]()
    if what == "flush":
        commands["write"]()  # a flush with nothing to make durable asks the file nothing
    failing.errors[what] = code
    assert failure(commands[what]) == expected
    failing.errors.clear()
    commands[what]()


def test_compare_and_verify_fail_as_reads_do(failing: FailingFile, host: Host) -> None:
    queue = host.create_queue_pair()
    assert queue.compare(1, 0, bytes(512))
    failing.errors["read"] = errno.EIO
    assert failure(lambda: queue.compare(1, 0, BLOCK))[0] == Status.UNRECOVERED_READ_ERROR
    assert failure(lambda: queue.verify(1, 0, 64))[0] == Status.UNRECOVERED_READ_ERROR


def test_a_failure_is_logged_counted_and_told(failing: FailingFile, host: Host) -> None:
    """Base 2.0, 5.16.1.2 and 5.16.1.3: where it happened, and what it says of the disk."""
    host.admin.set_feature(
        Feature.ASYNCHRONOUS_EVENT_CONFIGURATION, EventConfiguration.SMART_RELIABILITY
    )
    host.admin.request_event()
    queue = host.create_queue_pair()
    before = smart(host)
    assert (before.critical_warning, before.media_and_data_integrity_errors) == (0, 0)
    failing.errors["read"] = errno.EIO
    for lba in (7, 77, 777):
        failure(lambda lba=lba: queue.read(1, lba, 1))
    assert host.admin.events(timeout=10) == [RELIABILITY]
    entry = newest_error(host)
    assert (entry.sqid, entry.nsid, entry.lba) == (queue.qid, 1, 777)
    assert entry.status & 0x7FF == Status.UNRECOVERED_READ_ERROR
    assert entry.phase == 1
    assert entry.error_count == 3
    after = smart(host)
    assert after.media_and_data_integrity_errors == 3
    assert after.number_of_error_information_log_entries == 3
    assert after.critical_warning == CriticalWarning.RELIABILITY_DEGRADED
    host.admin.request_event()
    failure(lambda: queue.read(1, 7, 1))
    assert host.admin.events(timeout=0.2) == []  # it is known already


def test_an_event_nobody_asked_for_is_not_told(failing: FailingFile, host: Host) -> None:
    host.admin.request_event()
    failing.errors["read"] = errno.EIO
    failure(lambda: host.create_queue_pair().read(1, 0, 1))
    assert host.admin.events(timeout=0.2) == []
    assert smart(host).critical_warning == CriticalWarning.RELIABILITY_DEGRADED


def test_storage_that_turned_read_only_is_a_warning_of_its_own(
    failing: FailingFile, host: Host
) -> None:
    queue = host.create_queue_pair()
    failing.errors["write"] = errno.EROFS
    failure(lambda: queue.write(1, 0, BLOCK))
    assert smart(host).critical_warning == CriticalWarning.READ_ONLY
    assert smart(host).media_and_data_integrity_errors == 0
    assert queue.read(1, 0, 1) == bytes(512)


def test_one_namespace_that_fails_leaves_the_others(
    failing: FailingFile, serve: Serve, attach: Attach
) -> None:
    host = attach(serve(str(failing.path), "memory:8M"))
    queue = host.create_queue_pair()
    failing.errors |= {"read": errno.EIO, "write": errno.EROFS, "flush": errno.EIO}
    failure(lambda: queue.read(1, 0, 1))
    failure(lambda: queue.write(1, 0, BLOCK))
    queue.write(2, 0, BLOCK)
    assert queue.read(2, 0, 1) == BLOCK
    assert smart(host).critical_warning == CriticalWarning.RELIABILITY_DEGRADED
    failing.errors.clear()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1M", "shadowbell", folder], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"can't mount: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_file_system(small: Path, serve: Serve, attach: Attach) -> None:
    path = small / "disk.img"
    path.touch()
    os.truncate(path, 4 * MIB)
    host = attach(serve(str(path)))
    queue = host.create_queue_pair()

    def fill() -> int:
        for number in range(64):
            try:
                queue.write(1, number * 128, BLOCK * 128)
            except CommandError:
                return number
        raise AssertionError("4 MiB went into 1 MiB")

    written = fill()
    full = failure(lambda: queue.write(1, 60 * 128, BLOCK * 128))
    assert full == (Status.CAPACITY_EXCEEDED, False)
    assert 8 <= written <= 16
    assert queue.read(1, 0, 128) == BLOCK * 128
    assert smart(host).media_and_data_integrity_errors == 0
    queue.dataset_management(1, [(0, written * 128)])
    queue.write(1, 60 * 128, BLOCK * 128)
    assert queue.read(1, 60 * 128, 128) == BLOCK * 128


def mapper(table: str) -> Iterator[str]:
    """A device-mapper device of 4 MiB with a table (dmsetup(8))."""
    if os.geteuid() != 0 or shutil.which("dmsetup") is None:
        pytest.skip("device-mapper needs root and dmsetup")
    name = f"shadowbell-{os.getpid()}"
    made = subprocess.run(["dmsetup", "create", name, "--table", table], capture_output=True)
    if made.returncode:
        pytest.skip(f"no such device-mapper target here: {made.stderr.decode().strip()[:200]}")
    yield f"/dev/mapper/{name}"
    subprocess.run(["dmsetup", "remove", "--force", name], check=True)


@pytest.fixture
def error_device() -> Iterator[str]:
    yield from mapper("0 4096 zero\n4096 4096 error")


def test_a_block_device_that_fails_half_way(
    error_device: str, serve: Serve, attach: Attach
) -> None:
    host = attach(serve(error_device))
    queue: QueuePair = host.create_queue_pair()
    assert queue.read(1, 0, 8) == bytes(4096)
    assert failure(lambda: queue.read(1, 5000, 8))[0] == Status.UNRECOVERED_READ_ERROR
    assert failure(lambda: queue.write(1, 5000, BLOCK))[0] == Status.WRITE_FAULT
