"""`load` and what a configuration refuses."""

from pathlib import Path

import pytest

from shadowbell.config import ControllerConfig, NamespaceConfig, ServerConfig, load
from shadowbell.errors import UserError

EVERYTHING = """
iothreads = 2
poll_max_us = 0
fixed_buffers = true

[[controller]]
socket = "/run/a.sock"
serial = "A1"
model = "disk"
doorbells = "mapped"
dbbuf = false
max_queues = 128
interrupts = "msi"
namespace = ["disk.img,ro", { kind = "memory", size = "1G", lba = 4096 }]

[[controller]]
socket = "sockets/cntrl"

[[controller.namespace]]
kind = "file"
path = "/dev/vdb"
read_only = true
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "shadowbell.toml"
    path.write_text(text)
    return path


def test_a_file_says_everything(tmp_path: Path) -> None:
    assert load(write(tmp_path, EVERYTHING)) == ServerConfig(
        iothreads=2,
        poll_max_us=0,
        fixed_buffers=True,
        controllers=(
            ControllerConfig(
                socket="/run/a.sock",
                serial="A1",
                model="disk",
                doorbells="mapped",
                dbbuf=False,
                max_queues=128,
                interrupts="msi",
                namespaces=(
                    NamespaceConfig(kind="file", path=str(tmp_path / "disk.img"), read_only=True),
                    NamespaceConfig(kind="memory", size=2**30, lba=4096),
                ),
            ),
            ControllerConfig(
                socket=str(tmp_path / "sockets/cntrl"),
                namespaces=(NamespaceConfig(kind="file", path="/dev/vdb", read_only=True),),
            ),
        ),
    )


def test_home_is_expanded_as_no_shell_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    text = '[[controller]]\nsocket = "~/s"\nnamespace = "~/disk.img"'
    (controller,) = load(write(tmp_path, text)).controllers
    assert (controller.socket, controller.namespaces[0].path) == (
        "/home/me/s",
        "/home/me/disk.img",
    )


CONTROLLER = '[[controller]]\nsocket = "/a"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "add a .*controller.* table"),
        ("controller = 1", "add a .*controller.* table"),
        ("controller = [1]", "controller 1 is no table"),
        ("iothread = 2\n" + CONTROLLER, "controller 1: nothing to serve"),
        ("iothread = 2\n" + CONTROLLER + "namespace = 'a'", "unknown key 'iothread'"),
        (CONTROLLER + "namespaces = ['a']", "controller 1: unknown key 'namespaces': use socket"),
        (CONTROLLER + "namespace = [1]", "controller 1, namespace 1: is neither"),
        (CONTROLLER + "namespace = ['a', 'memory:12Q']", "namespace 2: bad size"),
        (CONTROLLER + "namespace = [{ kind = 'memory' }]", "needs a size"),
        (CONTROLLER + "namespace = [{ kind = 'null', size = '1Q' }]", "bad size"),
        (CONTROLLER + "namespace = [{ kind = 'file', path = 'a', lbs = 1 }]", "key 'lbs'"),
        (CONTROLLER + "namespace = [{ kind = 'null', size = 4096, lba = 520 }]", "lba"),
        (CONTROLLER + "namespace = [{ path = 'a' }]", "kind"),
        (CONTROLLER + "namespace = 'a'\nmax_queues = 'many'", "max_queues"),
        ("[[controller]]\nnamespace = 'a'", "socket"),
        ("[[controller]\n", "no valid TOML"),
    ],
)
def test_mistakes_are_one_line_that_names_the_file(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        load(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="no valid TOML"):
        load(tmp_path / "binary.toml")


NULL = NamespaceConfig(kind="null", size=4096)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"socket": ""}, "needs a socket"),
        ({"socket": "/" + "a" * 107}, "at most 107 bytes"),
        ({"namespaces": ()}, "at least one"),
        ({"namespaces": (NULL,) * 257}, "at most 256"),
        ({"serial": ""}, "bad serial"),
        ({"serial": "x" * 21}, "1 to 20"),
        ({"serial": "é"}, "ASCII"),
        ({"model": "x" * 41}, "1 to 40"),
        ({"doorbells": "rung"}, "trap or mapped"),
        ({"interrupts": "intx"}, "msix or msi"),
        ({"max_queues": 0}, "1 to 128"),
        ({"max_queues": 129}, "1 to 128"),
    ],
)
def test_controllers_check_themselves(fields: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ControllerConfig(**{"socket": "/a", "namespaces": (NULL,)} | fields)  # type: ignore[arg-type]


def controller(socket: str, *paths: str, read_only: bool = False) -> ControllerConfig:
    namespaces = [NamespaceConfig(kind="file", path=path, read_only=read_only) for path in paths]
    return ControllerConfig(socket=socket, namespaces=tuple(namespaces) or (NULL,))


def test_controllers_must_not_share_a_socket() -> None:
    with pytest.raises(UserError, match="each its own"):
        ServerConfig(controllers=(controller("/a"), controller("/b/../a")))


def test_an_image_has_one_writer_or_any_number_of_readers() -> None:
    ServerConfig(
        controllers=(
            controller("/a", "/i", read_only=True),
            controller("/b", "/i", read_only=True),
        )
    )
    for readers in (False, True):
        with pytest.raises(UserError, match="served twice"):
            ServerConfig(
                controllers=(controller("/a", "/i"), controller("/b", "/i", read_only=readers))
            )


def test_polling_always(tmp_path: Path) -> None:
    server = "poll_max_us = %s\n[[controller]]\nsocket = '/a'\nnamespace = 'null:1G'"
    assert load(write(tmp_path, server % '"busy"')).poll_max_us == "busy"
    for value in ('"lazy"', "true", "1.5"):
        with pytest.raises(UserError, match="poll_max_us"):
            load(write(tmp_path, server % value))


@pytest.mark.parametrize("fields", [{"iothreads": 0}, {"iothreads": 65}, {"poll_max_us": -1}])
def test_processes_check_themselves(fields: dict[str, int]) -> None:
    with pytest.raises(UserError, match="out of range"):
        ServerConfig(controllers=(controller("/a"),), **fields)


def test_serial_numbers_follow_from_the_socket() -> None:
    first, again, other = controller("/a"), controller("/x/../a"), controller("/b")
    assert first.serial_number == again.serial_number != other.serial_number
    assert len(first.serial_number) == 20
    assert ControllerConfig(socket="/a", namespaces=(NULL,), serial="S").serial_number == "S"
