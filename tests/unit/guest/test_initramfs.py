"""The initramfs writer, read back by the system's cpio where there is one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))
from initramfs import Initramfs


def sample() -> bytes:
    archive = Initramfs()
    archive.file("usr/bin/program", b"#!/bin/sh\n")
    archive.link("usr/bin/alias", "program")
    archive.file("usr/bin/program", b"a second one is left out")
    return archive.finish()


def test_headers_are_newc_and_aligned() -> None:
    data = sample()
    assert data.startswith(b"070701")
    assert len(data) % 4 == 0
    names = [b"usr\0", b"usr/bin\0", b"usr/bin/program\0", b"usr/bin/alias\0", b"TRAILER!!!\0"]
    places = [data.index(name) for name in names]
    assert places == sorted(places)
    assert data.count(b"usr/bin/program\0") == 1


@pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio")
def test_cpio_lists_it() -> None:
    done = subprocess.run(["cpio", "-itv"], input=sample(), capture_output=True, check=True)
    assert b"usr/bin/alias -> program" in done.stdout
    assert b"-rwxr-xr-x" in done.stdout
