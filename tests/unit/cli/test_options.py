"""The options make the same configuration that a TOML file would."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from shadowbell.cli.options import default_socket, server_config, serving_parser
from shadowbell.config import ControllerConfig, NamespaceConfig, ServerConfig, load
from shadowbell.errors import UserError


def parse(line: str, *own: str, need_images: bool = True) -> tuple[ServerConfig, dict[str, Any]]:
    parser = serving_parser("serve", "")
    for name in own:
        parser.add_argument(f"--{name}")
    return server_config(parser, shlex.split(line), *own, need_images=need_images)


def image(path: str, **fields: Any) -> NamespaceConfig:
    return NamespaceConfig(kind="file", path=path, **fields)


def test_the_short_form() -> None:
    config, _ = parse("disk.img --socket /run/disk.sock")
    assert config == ServerConfig(
        controllers=(ControllerConfig(socket="/run/disk.sock", namespaces=(image("disk.img"),)),)
    )


def test_every_option() -> None:
    config, own = parse(
        "--memory 2G a.img --socket /s --namespace file:/b,lba=4096 --serial S --model M "
        "--doorbells mapped --no-dbbuf --max-queues 8 --interrupts msi --read-only c.img "
        "--namespace null:1T --iothreads 2 --poll-max-us 0 --sqpoll --iopoll "
        "--fixed-buffers",
        "memory",
    )
    assert own == {"memory": "2G"}
    assert config == ServerConfig(
        iothreads=2,
        poll_max_us=0,
        sqpoll=True,
        iopoll=True,
        fixed_buffers=True,
        controllers=(
            ControllerConfig(
                socket="/s",
                serial="S",
                model="M",
                doorbells="mapped",
                dbbuf=False,
                max_queues=8,
                interrupts="msi",
                namespaces=(
                    image("a.img", read_only=True),
                    image("c.img", read_only=True),
                    image("/b", lba=4096, read_only=True),
                    NamespaceConfig(kind="null", size=2**40, read_only=True),
                ),
            ),
        ),
    )


def test_polling_always() -> None:
    config, _ = parse("a.img --poll-max-us busy")
    assert config.poll_max_us == "busy"


def test_and_starts_the_next_controller() -> None:
    config, _ = parse("a --read-only --socket /a --iothreads 2 --and b --socket /b --serial B")
    assert config == ServerConfig(
        iothreads=2,
        controllers=(
            ControllerConfig(socket="/a", namespaces=(image("a", read_only=True),)),
            ControllerConfig(socket="/b", namespaces=(image("b"),), serial="B"),
        ),
    )


def test_the_default_socket_belongs_to_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    config, _ = parse("disk.img")
    assert config.controllers[0].socket == "/run/user/7/shadowbell.sock"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_socket().startswith("/tmp/shadowbell-")


def test_a_file_says_it_all(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text("[[controller]]\nsocket = '/a'\nnamespace = 'null:1G'")
    config, own = parse(f"--config {path} --memory 1G", "memory")
    assert config == load(path)
    assert own == {"memory": "1G"}


def test_images_can_be_left_out_where_they_do_not_matter() -> None:
    config, _ = parse("--socket /a --and --socket /b", need_images=False)
    assert [controller.socket for controller in config.controllers] == ["/a", "/b"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "nothing to serve"),
        ("a --sock /a", "unrecognized arguments: --sock"),
        ("a --socket", "expected one argument"),
        ("a --iothreads many", "invalid int value"),
        ("a --iothreads 0", "out of range"),
        ("a --poll-max-us lazy", "'lazy': give microseconds"),
        ("a --poll-max-us 1000001", "out of range: give 0 to 1000000"),
        ("a --max-queues 129", "1 to 128"),
        ("a --doorbells rung", "invalid choice"),
        ("a,lba=520", "lba=512 or lba=4096"),
        ("--namespace memory:12Q", "bad size"),
        ("a a", "served twice"),
        ("a --and b", "after --and needs a socket"),
        ("a --socket /a --and b --socket /a", "each its own"),
        ("a --and b --socket /b --iothreads 2", "unrecognized arguments: --iothreads"),
        ("--config x a", "move the images into x"),
        ("--config x --read-only", "move --read-only into x"),
        ("--config x --and b", "move --and into x"),
    ],
)
def test_mistakes(line: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse(line)
