"""A Ceph cluster of our own: one monitor, one manager and some OSDs, on 127.0.0.1 in one folder.

    with Cluster() as ceph:
        ceph.create_image("disk", 64 << 20)
        ... f"rbd:{ceph.POOL}/disk?conf={ceph.conf}"

Runs as whoever starts it. The OSDs are bluestore on sparse files, so that one can be killed and
started again. Logs are in `folder`, which `__exit__` removes unless `keep` is set by then.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mgr", "ceph-mon", "ceph-osd", "monmaptool", "rbd")
TIMEOUT = 60.0  # seconds, for anything
FSID = "5ba5eba1-0000-4000-8000-000000000000"

# One machine is the whole cluster, so replicas go to different OSDs, not hosts. The short grace and
# timeouts let a test watch an OSD come and go; the small caches are for the machine's sake.
CONF = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{port}/0]
mon initial members = a
keyring = {folder}/keyring
public network = 127.0.0.0/8
run dir = {folder}
crash dir = {folder}
admin socket = {folder}/$name.$pid.asok
pid file =
log file = {folder}/$name.log
log to stderr = false
ms bind msgr1 = false
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
osd pool default size = 2
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
[mon]
mon data = {folder}/mon
mon cluster log file = {folder}/cluster.log
mon allow pool delete = true
mon osd down out interval = 3600
mon osd min down reporters = 1
auth allow insecure global id reclaim = false
mon warn on insecure global id reclaim allowed = false
[mgr]
mgr data = {folder}/mgr
mgr initial modules =
[osd]
osd data = {folder}/osd.$id
osd objectstore = bluestore
bluestore block size = 4294967296
bluestore block db create = false
bluestore block wal create = false
osd memory target = 939524096
osd memory cache min = 67108864
bluestore cache autotune = false
bluestore cache size = 134217728
osd crush update on start = true
osd heartbeat interval = 1
osd heartbeat grace = 4
osd max object name len = 256
osd max object namespace len = 64
osd scrub begin hour = 3
osd scrub end hour = 3
osd scrub load threshold = 0.01
[client]
log file = {folder}/client.$pid.log
"""


class ClusterError(Exception):
    """Ceph did not do what it should; the message names the program and ends with its words."""


def missing_programs() -> list[str]:
    """The programs of Ceph that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


class Cluster:
    """See the module. `osds`: how many, 2 or more for every object to be there twice."""

    POOL = "disks"

    def __init__(self, osds: int = 2) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="shadowbell-ceph-"))
        self.conf = self.folder / "ceph.conf"
        self.keep = False
        self.osds = osds
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.keep = True
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every daemon; nothing of a test cluster is worth a clean shutdown."""
        for process in self._running.values():
            process.kill()
        for process in self._running.values():
            process.wait()
        self._running.clear()
        if not self.keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    # --- images -----------------------------------------------------------------------------------

    def create_image(self, name: str, size: int, *features: str, object_size: str = "4M") -> None:
        """`size` in bytes; `features` replace Ceph's default ones."""
        chosen = [f"--image-feature={feature}" for feature in features]
        self.rbd(
            "create", "--size", f"{size}B", "--object-size", object_size, *chosen, self.of(name)
        )

    def of(self, name: str) -> str:
        return f"{self.POOL}/{name}"

    def rbd(self, *arguments: str) -> str:
        """Run `rbd`; what it printed. Raises ClusterError."""
        return self._run("rbd", "-c", str(self.conf), *arguments)

    def ceph(self, *arguments: str) -> str:
        """Run `ceph`; what it printed. Raises ClusterError."""
        return self._run("ceph", "-c", str(self.conf), "--connect-timeout", "20", *arguments)

    def add_user(self, name: str, *capabilities: str) -> Path:
        """A keyring of a new user `client.name`."""
        path = self.folder / f"{name}.keyring"
        path.write_text(self.ceph("auth", "get-or-create", f"client.{name}", *capabilities))
        return path

    # --- OSDs -------------------------------------------------------------------------------------

    def kill_osd(self, number: int) -> None:
        """As a power cut does: nothing is flushed."""
        process = self._running.pop(f"osd.{number}")
        process.send_signal(signal.SIGKILL)
        process.wait()

    def start_osd(self, number: int) -> None:
        """Start it and wait until the monitor counts it as up."""
        self._spawn(f"osd.{number}", "ceph-osd", "-i", str(number))
        self.await_true(lambda: number in self.osds_up(), f"osd.{number} to come up")

    def osds_up(self) -> set[int]:
        """The OSDs that the monitor holds for alive."""
        dump = json.loads(self.ceph("osd", "dump", "-f", "json"))
        return {osd["osd"] for osd in dump["osds"] if osd["up"]}

    def await_true(self, condition: Callable[[], bool], what: str) -> None:
        """Poll `condition`; ClusterError when a daemon ends or it takes too long."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            self._check_daemons()
            if time.monotonic() > deadline:
                raise ClusterError(f"waited {TIMEOUT:.0f} s for {what}; logs: {self.folder}")
            time.sleep(0.1)

    # --- starting ---------------------------------------------------------------------------------

    def _start(self) -> None:
        port = _free_port()
        self.conf.write_text(CONF.format(fsid=FSID, port=port, folder=self.folder))
        for name in ("mon", "mgr", *(f"osd.{number}" for number in range(self.osds))):
            (self.folder / name).mkdir()
        self._make_keyring()
        monmap = str(self.folder / "monmap")
        address = f"[v2:127.0.0.1:{port}/0]"
        self._run("monmaptool", "--create", "--fsid", FSID, "--addv", "a", address, monmap)
        keyring = str(self.folder / "keyring")
        self._daemon("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self._spawn("mon.a", "ceph-mon", "-i", "a")
        self._spawn("mgr.a", "ceph-mgr", "-i", "a")
        for number in range(self.osds):
            name = str(uuid.uuid4())
            if self.ceph("osd", "new", name).strip() != str(number):
                raise ClusterError("the monitor numbers the OSDs in an order of its own")
            self._daemon("ceph-osd", "--mkfs", "-i", str(number), "--osd-uuid", name)
            self._spawn(f"osd.{number}", "ceph-osd", "-i", str(number))
        self.await_true(lambda: len(self.osds_up()) == self.osds, "the OSDs to come up")
        self.ceph("osd", "pool", "create", self.POOL, "8")
        self.rbd("pool", "init", self.POOL)

    def _make_keyring(self) -> None:
        every = ["--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"]
        users = {"mon.": ["--cap", "mon", "allow *"], "client.admin": every, "mgr.a": every}
        users |= {f"osd.{number}": every for number in range(self.osds)}
        keyring = self.folder / "keyring"
        keyring.touch()
        for user, capabilities in users.items():
            self._run("ceph-authtool", str(keyring), "--gen-key", "-n", user, *capabilities)

    def _spawn(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self._running[name] = subprocess.Popen(
                [*command, "-c", str(self.conf), "-f"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def _daemon(self, *command: str) -> str:
        return self._run(*command, "-c", str(self.conf))

    def _run(self, *command: str) -> str:
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT
            )
        except subprocess.TimeoutExpired as error:
            self._check_daemons()
            raise ClusterError(f"{command} took too long; logs: {self.folder}") from error
        if done.returncode:
            self._check_daemons()
            raise ClusterError(f"{command} failed: {done.stderr[-2000:]}; logs: {self.folder}")
        return done.stdout

    def _check_daemons(self) -> None:
        for name, process in self._running.items():
            if process.poll() is not None:
                out = (self.folder / f"{name}.out").read_text(errors="replace")
                raise ClusterError(
                    f"{name} ended with {process.returncode}: {out[-2000:]}; logs: {self.folder}"
                )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
