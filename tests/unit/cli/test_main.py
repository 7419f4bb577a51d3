"""What `main` returns and prints: exit code 2 and one line for every mistake."""

import subprocess
import sys

import pytest

from shadowbell import __version__, cli
from shadowbell.cli import main


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == main(["--version"]) == 0
    assert capsys.readouterr().out == f"shadowbell {__version__}\n" * 2


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "qemu-args" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["help", "qemu-args"])
    assert "--memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no command"),
        (["server"], "unknown command 'server': use serve"),
        (["version", "now"], "takes no arguments"),
        (["qemu-args", "--bogus"], "unrecognized arguments: --bogus"),
        (["qemu-args", "--memory", "12Q"], "bad size '12Q'"),
        (["qemu-args", "--memory", "1K"], "multiple of 1M"),
        (["qemu-args", "--config", "/does/not/exist"], "No such file"),
    ],
)
def test_mistakes(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("shadowbell: error: ")
    assert words in line


def test_qemu_args_is_one_line_to_paste(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["qemu-args", "--socket", "/run/a b.sock", "--memory", "2.5G"]) == 0
    assert capsys.readouterr().out == (
        "-m 2560M -object memory-backend-memfd,id=mem,size=2560M,share=on "
        "-machine q35,memory-backend=mem -device "
        '\'{"driver":"vfio-user-pci","socket":{"type":"unix","path":"/run/a b.sock"}}\'\n'
    )


def test_an_interrupt_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_version", interrupted)
    assert main(["version"]) == 130
    assert capsys.readouterr().err == ""


def test_a_reader_that_leaves_is_no_traceback() -> None:
    command = f"{sys.executable} -m shadowbell --help | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""
