"""Which images are believed to be what, and what is said where nobody can read them."""

from pathlib import Path

import pytest

from shadowbell.block import images, open_backend
from shadowbell.config import parse_namespace
from shadowbell.errors import UserError

HEADS = {
    "qcow2": b"QFI\xfb\0\0\0\x03",
    "vmdk": b"KDMV\x01\0\0\0",
    "vhdx": b"vhdxfile",
    "vpc": b"conectix",
    "vdi": b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + b"\x7f\x10\xda\xbe",
    "luks": b"LUKS\xba\xbe\0\x01",
}


def opened(spec: str) -> None:
    config = parse_namespace(spec)
    open_backend(
        config.kind,
        path=config.path,
        size=config.size,
        lba=config.lba,
        read_only=config.read_only,
        key=config.key,
    ).close()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without QEMU and nbdkit."""
    monkeypatch.setattr(images, "find_program", lambda name: None)


@pytest.mark.parametrize("kind", HEADS)
def test_a_raw_disk_stays_raw_whatever_a_guest_wrote(
    tmp_path: Path, alone: None, kind: str
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(HEADS[kind].ljust(1 << 20, b"\0"))
    for spec in (str(path), f"file:{path}"):
        opened(spec)
    assert path.read_bytes().startswith(HEADS[kind])


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("found", [*HEADS, None])
def test_the_name_and_the_magic_must_agree(
    tmp_path: Path, alone: None, kind: str, found: str | None
) -> None:
    path = tmp_path / "image"
    path.write_bytes(HEADS[found].ljust(4096, b"\0") if found else bytes(4096))
    spec = f"{kind}:{path}" + (",key=/dev/null" if kind == "luks" else "")
    with pytest.raises(UserError) as caught:
        opened(spec)
    if kind == found:
        assert f"is a {kind} image" in str(caught.value)
        assert "apt-get install qemu-utils" in str(caught.value)
    else:
        assert f"write {found or 'file'}:{path}" in str(caught.value)


def test_the_web_needs_nbdkit(alone: None) -> None:
    with pytest.raises(UserError, match="apt-get install nbdkit"):
        opened("https://localhost/disk.img")


def test_an_image_that_isnt_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        opened(f"{tmp_path}/disk.qcow2")
