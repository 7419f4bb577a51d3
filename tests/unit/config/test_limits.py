"""Limits of a namespace, as they are written."""

from pathlib import Path

import pytest

from shadowbell.config import load, parse_namespace
from shadowbell.errors import UserError
from shadowbell.limits import Limits, parse_limits


def test_in_a_specification() -> None:
    assert parse_namespace("memory:1G,iops=2K,bps=10M,burst=1.5").limits == Limits(
        iops=2000, bps=10 << 20, burst=1.5
    )
    assert parse_namespace("memory:1G").limits == Limits()


def test_in_a_table(tmp_path: Path) -> None:
    path = tmp_path / "vm.toml"
    path.write_text(
        "[[controller]]\nsocket = 's'\n[[controller.namespace]]\nkind = 'memory'\nsize = '1G'\n"
        "iops = 500\nbps = '1M'\nburst = 2\n"
    )
    namespace = load(path).controllers[0].namespaces[0]
    assert namespace.limits == Limits(iops=500, bps=1 << 20, burst=2.0)


def test_by_command() -> None:
    assert parse_limits(["iops=1M"]) == Limits(iops=10**6)
    assert parse_limits(["bps=64K", "burst=0.01"]) == Limits(bps=65536, burst=0.01)
    assert parse_limits(["none"]) == parse_limits(["iops=0", "bps=0"]) == Limits()


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("iops=-1", "out of range"),
        ("iops=1000M", "out of range"),
        ("iops=1G", "bad iops"),
        ("iops=", "bad iops"),
        ("iops=K", "bad iops"),
        ("iops=²", "bad iops"),
        ("iops=1.5", "bad iops"),
        ("bps=1K", "out of range"),
        ("bps=x", "bad size"),
        ("burst=0", "out of range"),
        ("burst=nan", "out of range"),
        ("burst=1s", "bad burst"),
        ("speed=1", "unknown limit"),
        ("iops", "unknown limit"),
    ],
)
def test_what_can_not_be(word: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        parse_limits([word])
    with pytest.raises(UserError):
        parse_namespace(f"memory:1M,{word}")
