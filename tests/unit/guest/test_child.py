"""Child processes: ended with their context, and told apart when they don't start."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from shadowbell.guest.child import Child, ChildError

ENDLESS = "import time; print('up', flush=True); time.sleep(600)"


class Python(Child):
    def __init__(self, code: str) -> None:
        super().__init__("child")
        self._code = code

    def start(self) -> None:
        self._launch([sys.executable, "-c", self._code])
        if not self._wait_until(lambda: "up" in self.log, 30):
            raise ChildError(f"ended with {self.exit_code}: {self.log}")


def test_it_ends_with_its_context_and_leaves_nothing() -> None:
    with Python(ENDLESS) as child:
        pid, folder = child.pid, child.folder
        assert child.exit_code is None
        assert child.log == "up\n"
        assert os.getsid(pid) == pid  # ^C isn't for it
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not folder.exists()
    with pytest.raises(ChildError, match="isn't running"):
        _ = child.pid


def test_one_that_does_not_start_says_why() -> None:
    child = Python("import sys; sys.exit('no disk')")
    with pytest.raises(ChildError, match="ended with 1: no disk"), child:
        pass
    assert not child.folder.exists()


def test_one_that_was_killed_is_known() -> None:
    with Python(ENDLESS) as child:
        os.kill(child.pid, signal.SIGKILL)
        assert not child._wait_until(lambda: False, 30)
        assert child.exit_code == -signal.SIGKILL
