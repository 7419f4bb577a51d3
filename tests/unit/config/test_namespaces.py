"""`parse_namespace`: the specification of one namespace."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowbell.block.rbd_name import parse_rbd
from shadowbell.config import NamespaceConfig, parse_namespace
from shadowbell.errors import UserError

paths = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@pytest.mark.parametrize(
    ("spec", "namespace"),
    [
        ("disk.img", NamespaceConfig(kind="file", path="disk.img")),
        ("/dev/vdb,ro", NamespaceConfig(kind="file", path="/dev/vdb", read_only=True)),
        ("file:/a,lba=4096", NamespaceConfig(kind="file", path="/a", lba=4096)),
        ("memory:1G", NamespaceConfig(kind="memory", size=2**30)),
        ("null:1T,ro,lba=4096", NamespaceConfig(kind="null", size=2**40, lba=4096, read_only=True)),
        (
            "memory:1G,record=a,,b.log",
            NamespaceConfig(kind="memory", size=2**30, record="a,b.log"),
        ),
        ("a,,b.img,ro", NamespaceConfig(kind="file", path="a,b.img", read_only=True)),
        ("file:a:b", NamespaceConfig(kind="file", path="a:b")),
        ("./a:b", NamespaceConfig(kind="file", path="./a:b")),
        ("a/disk.QCOW2,ro", NamespaceConfig(kind="qcow2", path="a/disk.QCOW2", read_only=True)),
        ("disk.vhd", NamespaceConfig(kind="vpc", path="disk.vhd")),
        ("file:disk.qcow2", NamespaceConfig(kind="file", path="disk.qcow2")),
        ("vmdk:disk.img", NamespaceConfig(kind="vmdk", path="disk.img")),
        ("luks:/a,key=/k", NamespaceConfig(kind="luks", path="/a", key="/k")),
        ("nbd://host:1/a,,b", NamespaceConfig(kind="nbd", path="nbd://host:1/a,b")),
        ("nbd:nbds://u@host/", NamespaceConfig(kind="nbd", path="nbds://u@host/")),
        (
            "nbd+unix:///e?socket=/s,timeout=2.5,lba=4096",
            NamespaceConfig(kind="nbd", path="nbd+unix:///e?socket=/s", timeout=2.5, lba=4096),
        ),
        (
            "https://host/disk.img",
            NamespaceConfig(kind="https", path="https://host/disk.img", read_only=True),
        ),
        (
            "/dev/disk/by-path/pci-0000:00:1f.2",
            NamespaceConfig(kind="file", path="/dev/disk/by-path/pci-0000:00:1f.2"),
        ),
    ],
)
def test_specifications(spec: str, namespace: NamespaceConfig) -> None:
    assert parse_namespace(spec) == namespace


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", "lacks a path"),
        ("file:", "lacks a path"),
        ("memory:", "memory:1G"),
        ("memory:12Q", "bad size '12Q'"),
        ("memory:1000", "multiple of 512"),
        ("memory:1536,lba=4096", "multiple of 4096"),
        ("mem:1G", "use one of file: memory: null: nbd: rbd: "),
        ("rbd:pool", "names no image"),
        ("rbd:pool/image@", "names no image"),
        ("rbd:pool/image?id=a&id=b", "id is given twice"),
        ("rbd:pool/image?id", "lacks its value"),
        ("rbd:pool/image?timeout=soon", "give 0 to 86400 seconds"),
        ("rbd:pool/image,timeout=3", "has no timeout"),
        ("rbd:", "lacks an image"),
        ("disk.img,lba=520", "lba=512 or lba=4096"),
        ("disk.img,lba=", "lba=512 or lba=4096"),
        ("disk.img,lba=512,lba=512", "twice"),
        ("disk.img,cache=none", "unknown option 'cache=none'"),
        ("disk.img,ro=on", "unknown option 'ro=on'"),
        ("disk.img,", "unknown option ''"),
        ("disk\0.img", "NUL"),
        ("nbd:", "lacks a URI"),
        ("nbd:/run/disk.sock", "no NBD URI"),
        ("disk.img,timeout=5", "no timeout"),
        ("nbd://host/,timeout=soon", "bad timeout 'soon'"),
        ("nbd://host/,timeout=nan", "out of range"),
        ("luks:/a", "key=FILE"),
        ("qcow2:/a,key=/k", "no key"),
        ("disk.img,record=", "path of a new file"),
        ("null:1G,record=a.log", "null namespace can't be recorded"),
        ("disk.img,ro,record=a.log", "nothing to record"),
    ],
)
def test_mistakes(spec: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_namespace(spec)


@given(paths, st.sampled_from([512, 4096]), st.booleans())
def test_any_path_can_be_written(path: str, lba: int, read_only: bool) -> None:
    spec = f"file:{path.replace(',', ',,')},lba={lba}" + (",ro" if read_only else "")
    namespace = parse_namespace(spec)
    assert (namespace.path, namespace.lba, namespace.read_only) == (path, lba, read_only)


@given(st.text())
def test_any_text_gives_a_namespace_or_one_line(spec: str) -> None:
    line = ""
    try:
        parse_namespace(spec)
    except UserError as error:
        line = str(error)
    assert "\n" not in line


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "tape"}, "unknown kind"),
        ({"kind": "file"}, "needs a path"),
        ({"kind": "file", "path": "a", "size": 1}, "leave size out"),
        ({"kind": "memory"}, "needs a size"),
        ({"kind": "null", "size": 512, "path": "a"}, "has no path"),
        ({"kind": "null", "size": 0}, "out of range"),
        ({"kind": "null", "size": 2**63}, "out of range"),
        ({"kind": "null", "size": 512, "lba": 520}, "use 512 or 4096"),
    ],
)
def test_structures_check_themselves(fields: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        NamespaceConfig(**fields)  # type: ignore[arg-type]


def test_an_image_of_ceph() -> None:
    image = parse_namespace("rbd:vms/tenant/disk?conf=/etc/a%2Cb.conf&takeover&rbd_cache=true")
    assert (image.kind, image.read_only) == ("rbd", False)
    assert image.path is not None
    name = parse_rbd(image.path)
    assert (name.pool, name.namespace, name.image) == ("vms", "tenant", "disk")
    assert (name.conf, name.takeover, name.ceph) == ("/etc/a,b.conf", True, {"rbd_cache": "true"})
    assert parse_namespace("rbd:vms/disk@monday").read_only
