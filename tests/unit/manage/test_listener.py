"""Who may listen where, and what is left behind."""

import os
import socket
from pathlib import Path

import pytest

from shadowbell.errors import UserError
from shadowbell.manage.listener import Listener


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    return client


def test_accepts_and_cleans_up(tmp_path: Path) -> None:
    path = tmp_path / "disk.sock"
    listener = Listener(str(path))
    assert listener.accept() is None
    with connect(path):
        server_end = listener.accept()
        assert server_end is not None
        assert not server_end.getblocking()
        server_end.close()
    listener.close()
    listener.close()
    assert list(tmp_path.iterdir()) == []


def test_replaces_a_stale_socket(tmp_path: Path) -> None:
    path = tmp_path / "disk.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listener = Listener(str(path))
    connect(path).close()
    listener.close()


def test_live_sockets_are_in_use(tmp_path: Path) -> None:
    path = tmp_path / "disk.sock"
    listener = Listener(str(path))
    with pytest.raises(UserError, match="in use"):
        Listener(str(path))
    assert path.exists()
    listener.close()


def test_leaves_a_successors_socket_alone(tmp_path: Path) -> None:
    path = tmp_path / "disk.sock"
    listener = Listener(str(path))
    path.unlink()
    successor = Listener(str(path))
    listener.close()
    connect(path).close()
    successor.close()


def test_spdk_convention_makes_the_directory(tmp_path: Path) -> None:
    path = tmp_path / "one" / "two" / "cntrl"
    listener = Listener(str(path))
    connect(path).close()
    listener.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent/disk.sock", "make the directory"),
        ("folder", "folder/cntrl"),
        ("file", "no socket"),
        ("file/disk.sock", "make the directory"),
        ("x" * 200, "can't listen"),
    ],
)
def test_bad_paths_are_one_line(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UserError, match=message) as caught:
        Listener(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert len(os.listdir("/proc/self/fd")) == before
