"""`shadowbell serve` as a process: mistakes, signals, and what it prints."""

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

F_OFD_SETLK = 37  # in the fcntl module from Python 3.14 on
SHADOWBELL = [sys.executable, "-m", "shadowbell"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, 2**20)
    return path


def refusal(*arguments: str | Path) -> str:
    """The one line that `serve` refuses with."""
    done = subprocess.run(
        [*SHADOWBELL, "serve", *arguments], capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 2, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("shadowbell: error: ")
    return line


@contextmanager
def serving(*arguments: str | Path) -> Iterator[tuple["subprocess.Popen[str]", list[str]]]:
    """A serving process, and what it printed until its QEMU arguments."""
    with subprocess.Popen(
        [*SHADOWBELL, "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            lines: list[str] = []
            while not (lines and lines[-1].startswith("  -m ")):
                line = process.stdout.readline()
                assert line, process.stderr and process.stderr.read()
                lines.append(line)
            yield process, lines
        finally:
            process.kill()


def test_missing_image(tmp_path: Path) -> None:
    assert "truncate -s" in refusal(tmp_path / "none.img", "--socket", tmp_path / "s")


def test_size_that_is_no_multiple_of_the_lba(image: Path, tmp_path: Path) -> None:
    os.truncate(image, 2**20 + 512)
    line = refusal(f"{image},lba=4096", "--socket", tmp_path / "s")
    assert "multiple" in line
    assert "4096" in line


def test_an_image_that_is_a_folder(tmp_path: Path) -> None:
    assert "folder" in refusal(tmp_path, "--socket", tmp_path / "s")


def test_unknown_option(image: Path) -> None:
    assert "unrecognized arguments: --sockets" in refusal(image, "--sockets", "x")


def test_socket_in_use(image: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()
        assert "in use" in refusal(image, "--socket", tmp_path / "s")
    assert (tmp_path / "s").exists()


def test_no_folder_for_the_socket(image: Path, tmp_path: Path) -> None:
    assert "directory" in refusal(image, "--socket", tmp_path / "none" / "s")


def test_a_file_that_is_no_socket(image: Path, tmp_path: Path) -> None:
    assert "no socket" in refusal("null:1M", "--socket", image)
    assert image.stat().st_size == 2**20


def test_image_locked_with_flock(image: Path, tmp_path: Path) -> None:
    with image.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "locked by another process" in refusal(image, "--socket", tmp_path / "s")


def test_image_locked_as_qemu_does(image: Path, tmp_path: Path) -> None:
    with image.open("r+b") as other:
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 100, 1, 0)
        fcntl.fcntl(other, F_OFD_SETLK, lock)
        assert "locked by another process" in refusal(image, "--socket", tmp_path / "s")


def test_image_served_already(image: Path, tmp_path: Path) -> None:
    with serving(image, "--socket", tmp_path / "s"):
        assert "locked by another process" in refusal(image, "--socket", tmp_path / "t")
        assert "in use" in refusal("null:1M", "--socket", tmp_path / "s")


def test_it_says_where_it_listens_and_what_to_paste(image: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with serving(image, "memory:1M,lba=4096", "--socket", path, "--serial", "S1") as (_, lines):
        assert f"listening at {path} (serial S1)\n" in lines
        assert f"  namespace 1: {image}, LBA 512\n" in lines
        assert "  namespace 2: memory:1M, LBA 4096\n" in lines
        done = subprocess.run(
            [*SHADOWBELL, "qemu-args", "--socket", path], capture_output=True, text=True
        )
        assert lines[-1] == f"  {done.stdout}"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


@pytest.fixture
def hangups_arrive() -> Iterator[None]:
    """Also where the tests run under nohup: a server keeps ignoring what it finds ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangups_arrive")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_cleanly(image: Path, tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "s"
    with serving(image, "--socket", path, "--and", "null:1M", "--socket", tmp_path / "t") as (
        process,
        _,
    ):
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "Traceback" not in errors
    assert not path.exists()
    assert not (tmp_path / "t").exists()


def test_sigusr1_writes_the_ledger(tmp_path: Path) -> None:
    with serving("null:1M", "--socket", tmp_path / "s") as (process, _):
        process.send_signal(signal.SIGUSR1)
        ledger = tmp_path / "s.ledger"
        deadline = time.monotonic() + 20
        while not ledger.exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        assert isinstance(json.loads(ledger.read_text()), list)


def test_a_config_file(tmp_path: Path) -> None:
    path = tmp_path / "vm.toml"
    path.write_text("[[controller]]\nsocket = 's'\nnamespace = 'null:1M'")
    with serving("--config", path) as (_, lines):
        assert lines[0].startswith(f"listening at {tmp_path}/s ")
    path.write_text("[[controller]]\nsocket = 's'\nnamespaces = 'null:1M'")
    assert "unknown key 'namespaces'" in refusal("--config", path)


def test_serving_imports_nothing_that_is_slow() -> None:
    code = "import sys, shadowbell.cli.serve; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"rich", "asyncio", "multiprocessing", "ssl", "http", "xml"}
    assert not {"shadowbell.driver", "shadowbell.demo"} & set(done.stdout.split())
