"""`shadowbell bench`: what its options mean, and every mistake in one line with exit code 2."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from shadowbell.bench import Served, Socket, parse_target
from shadowbell.cli import main
from shadowbell.cli.bench import _parser, sweep_of
from shadowbell.errors import UserError


def test_lists_multiply() -> None:
    arguments = ["--doorbells", "trap,shadow", "--depth", "1,32,32", "--pattern", "read,randrw"]
    sweep = sweep_of(_parser().parse_args(arguments), ["--iothreads", "2"])
    assert len(sweep.points) == 2 * 2 * 2
    assert [point.way for point in sweep.points] == ["trap"] * 4 + ["shadow"] * 4
    (target,) = sweep.targets
    assert isinstance(target, Served)
    assert target.arguments("mapped", "0")[-6:] == [
        *("--doorbells", "mapped", "--poll-max-us", "0"),
        *("--iothreads", "2"),
    ]


def test_a_rate_has_room_in_flight() -> None:
    sweep = sweep_of(_parser().parse_args(["--rate", "1000,10000"]), [])
    assert [(point.rate, point.depth) for point in sweep.points] == [(1000, 32), (10000, 32)]


def test_no_flush_is_for_every_pattern() -> None:
    sweep = sweep_of(_parser().parse_args(["--flush-every", "0", "--depth", "1"]), [])
    assert [point.flush_every for point in sweep.points] == [0]
    arguments = ["--flush-every", "0,1,32", "--pattern", "randwrite,randrw", "--depth", "1"]
    sweep = sweep_of(_parser().parse_args(arguments), [])
    assert [point.flush_every for point in sweep.points] == [0, 1, 32] * 2


def test_targets(tmp_path: Path) -> None:
    assert parse_target("memory:1M").fresh
    assert not parse_target("null:1T").fresh
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "cntrl"))
        assert parse_target(str(tmp_path)) == Socket(tmp_path / "cntrl")
    with pytest.raises(UserError, match="nobody serves"):
        parse_target(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pattern", "backwards"], "unknown pattern 'backwards': use randread"),
        (["--doorbells", "loud"], "unknown doorbells 'loud'"),
        (["--depth", "0"], "bad --depth '0': give 1 to 65535"),
        (["--depth", "1,,2"], "bad --depth ''"),
        (["--flush-every", "-1", "--pattern", "write"], "bad --flush-every '-1'"),
        (["--flush-every", "8"], "randread has none: use --pattern randwrite"),
        (["--flush-every", "8", "--pattern", "write,read"], "read has none"),
        (["--flush-every", "8", "--pattern", "randrw", "--mix", "0"], "--mix 0 has none"),
        (["--ping", "--flush-every", "8"], "--flush-every has no meaning with --ping"),
        (["--rate", "fast"], "bad --rate 'fast'"),
        (["--poll-max-us", "lazy"], "bad polling window 'lazy'"),
        (["--block-size", "4Q"], "bad size '4Q'"),
        (["--mix", "120"], "bad --mix 120"),
        (["--runs", "0"], "bad --runs 0"),
        (["--time", "0"], "bad --time 0"),
        (["--cpus", "0,4095"], "bad --cpus"),
        (["--namespace", "memory"], "nobody serves memory"),
        (["--target", "/does/not/exist"], "nobody serves /does/not/exist"),
        (["--target", "memory:1M"], "is no socket"),
        (["--target", "a", "--namespace", "b"], "give one"),
        (["--namespace", "null:1M", "--against", "null:1M"], "the same thing"),
        (["--compete"], "say with --cpus"),
        (["--guest", "--against", "null:1M"], "takes running servers' sockets"),
        (["--ping", "--guest"], "two measurements"),
        (["--ping", "--depth", "4"], "--depth has no meaning with --ping"),
        (["--ping", "--doorbells", "mapped"], "wake"),
        (["--idle", "1,x"], "bad --idle 'x'"),
        (["--guest", "--verify"], "--verify has no meaning with --guest"),
        (["--bogus"], "unrecognized arguments: --bogus"),
    ],
)
def test_mistakes(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("shadowbell: error: ")
    assert words in line
