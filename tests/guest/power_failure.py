"""File systems that a guest made and used, and what power failures leave of them.

One guest does both: it makes a file system on a namespace that is recorded and runs a workload
there (synced_files.py), whose notes go to a second recorded namespace: on the same clock, so that
they say what was acknowledged by any moment of the first. Then disks that a power failure could
have left come as namespaces, a dozen at a time. The guest mounts each, which replays the journal,
lists its files, unmounts it and has it checked.
"""

from __future__ import annotations

import itertools
import random
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from synced_files import Files, Workload

from shadowbell.cli.control import ask
from shadowbell.controller.namespaces import MAX_NAMESPACES
from shadowbell.crash import CrashStates, Device, Granularity, Recording, State
from shadowbell.guest import Guest, Served, disk
from shadowbell.manage.control import AddNamespace, RemoveNamespace

BATCH = 12
MOUNTED = "/mnt/disk"


@dataclass(frozen=True)
class FileSystem:
    """How to make, mount and check one; `fsck` changes nothing and ends with 0 when all is well.

    `size` is in MiB. `replayed` is what the kernel says when there was something to replay.
    """

    name: str
    size: int
    mkfs: str
    fsck: str
    options: str
    replayed: str


# A small journal goes round sooner. XFS is 300 MiB at least.
EXT4 = FileSystem(
    "ext4", 96, "mkfs.ext4 -q -J size=4", "fsck.ext4 -f -n", "commit=1", "recovery complete"
)
XFS = FileSystem("xfs", 304, "mkfs.xfs -q", "xfs_repair -n -P", "defaults", "Ending recovery")

TROUBLE = re.compile(
    r"(EXT4-fs.*(error|warning)|XFS.*(corrupt|error|shut)|I/O error|BUG:|Call Trace)", re.I
)


@dataclass(frozen=True)
class Life:
    """What was recorded of a file system in use."""

    kind: FileSystem
    lba: int
    workload: Workload
    log: Path
    recording: Recording
    notes: list[tuple[int, int, int]]
    """Time (ns of CLOCK_MONOTONIC), worker, how many of its steps were done by then."""

    @property
    def window(self) -> tuple[int, int]:
        """The moments at which files had been promised, until after unmounting."""
        return self.recording.moment_at(self.notes[0][0]), self.recording.moments

    def crashes(
        self,
        states: int,
        *,
        seed: int,
        granularity: Granularity = "command",
        device: Device = "honest",
    ) -> Iterator[State]:
        """So many disks, at random moments: four of each, or all where fewer can be left.

        Not of moments at which all is stable: there the disk is what it is.
        """
        made = CrashStates(self.recording, granularity=granularity, device=device, seed=seed)
        moments = range(self.window[0], self.window[1] + 1)
        chosen = random.Random(seed).sample(moments, len(moments))
        unstable = (moment for moment in chosen if made.count(moment) > 1)
        return itertools.islice((s for moment in unstable for s in made.at(moment, 4)), states)

    def wrong(self, state: State, found: Files) -> list[str]:
        """What of the promised files isn't there."""
        done = {worker: steps for at, worker, steps in self.notes if at <= state.time}
        checked = (self.workload.workers[worker].wrong(n, found) for worker, n in done.items())
        return [complaint for complaint in checked if complaint is not None]


@dataclass(frozen=True)
class Verdict:
    """What came of a disk; `wrong` is empty when the file system survived."""

    state: State
    wrong: list[str]
    replayed: bool
    said: str

    def __str__(self) -> str:
        where = f"power failed after entry {self.state.moment}, {self.state.lost} changes lost"
        return "\n".join([where, *self.wrong, self.said[-3000:]])


class Laboratory:
    """A server, a guest on it, and `folder` for logs and images; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._notes_log = folder / "notes.log"
        self._lives = itertools.count()
        self._nsids = itertools.cycle(range(2, MAX_NAMESPACES + 1))  # long gone when used again
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            serve = [f"memory:1M,record={self._notes_log}", "--socket", "{folder}/disk"]
            self._served = stack.enter_context(Served(serve))
            self._socket = str(self._served.socket("disk"))
            self.guest = stack.enter_context(Guest([disk(Path(self._socket))], cpus=2))
            self.guest.check(
                f"mkdir {MOUNTED}; for m in /modules/$(uname -r)/xfs/*.ko; do insmod $m; done;"
                # Write back soon: more is under way when the power fails.
                " cd /proc/sys/vm;"
                " echo 20 >dirty_writeback_centisecs; echo 50 >dirty_expire_centisecs",
                timeout=120,
            )
            self._notes_disk = self._devices([1])[1]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def live(self, kind: FileSystem, workload: Workload, lba: int) -> Life:
        """Make a file system and run the workload on it, all of it recorded."""
        log = self.folder / f"{kind.name}-{next(self._lives)}.log"
        earlier = Recording.open(self._notes_log).moments
        nsid = self._add(f"memory:{kind.size}M,lba={lba},record={log}")
        device = self._devices([nsid])[nsid]
        self.guest.check(
            f"{kind.mkfs} {device} && mount -t {kind.name} -o {kind.options} {device} {MOUNTED}"
        )
        self.guest.check(workload.script(MOUNTED, self._notes_disk), timeout=600)
        self.guest.check(f"umount {MOUNTED}")
        ask(self._socket, RemoveNamespace(nsid))
        recorded = Recording.open(self._notes_log)
        notes = []
        for change in recorded.changes:
            if change.begun >= earlier:
                text = recorded.data(change, change.offset, change.length).rstrip(b"\0").split()
                notes.append((recorded.times[change.begun], int(text[0]), int(text[1])))
        return Life(kind, lba, workload, log, Recording.open(log), notes)

    def check(self, life: Life, states: Iterable[State]) -> Iterator[Verdict]:
        """Have the guest look at each of the disks."""
        remaining = iter(states)
        while batch := list(itertools.islice(remaining, BATCH)):
            images = [self.folder / f"crashed-{n}.img" for n in range(len(batch))]
            nsids: list[int] = []
            for image, state in zip(images, batch, strict=True):
                state.write(image)
                nsids.append(self._add(f"file:{image},lba={life.lba}"))
            devices = self._devices(nsids)
            script = "\n".join(_look(life.kind, devices[nsid]) for nsid in nsids)
            said = self.guest.check(script, timeout=600).split("=====\n")[1:]
            for nsid, image in zip(nsids, images, strict=True):
                ask(self._socket, RemoveNamespace(nsid))
                image.unlink()
            for state, each in zip(batch, said, strict=True):
                yield _judge(life, state, each)

    def _add(self, spec: str) -> int:
        nsid = next(self._nsids)
        ask(self._socket, AddNamespace(spec, nsid))
        return nsid

    def _devices(self, nsids: list[int]) -> dict[int, str]:
        """The guest's block devices of these namespaces, once they are all there."""
        end = time.monotonic() + 60
        script = (
            "for n in /sys/class/nvme/nvme*/nvme*n*; do d=/dev/${n##*/};"
            " [ -b $d ] && echo $(cat $n/nsid) $d; done; true"
        )
        while True:
            pairs = (line.split() for line in self.guest.check(script).splitlines())
            found = {int(pair[0]): pair[1] for pair in pairs if len(pair) == 2}
            if found.keys() >= set(nsids):
                return found
            if time.monotonic() > end:
                raise TimeoutError(f"the guest sees namespaces {sorted(found)}, not all of {nsids}")
            time.sleep(0.2)


def _look(kind: FileSystem, device: str) -> str:
    return (
        f"echo =====; dmesg -c >/dev/null\n"
        f"if mount -t {kind.name} {device} {MOUNTED}; then echo mounted\n"
        f"(cd {MOUNTED}; find . -type f -exec md5sum {{}} +); umount {MOUNTED}\n"
        f"{kind.fsck} {device} >/tmp/fsck 2>&1; code=$?; [ $code = 0 ] || cat /tmp/fsck\n"
        f"echo fsck ended with $code; fi; dmesg -c"
    )


def _judge(life: Life, state: State, said: str) -> Verdict:
    files = {path: md5 for md5, path in re.findall(r"^([0-9a-f]{32})  \./(.+)$", said, re.M)}
    wrong = []
    if "\nmounted\n" not in f"\n{said}":
        wrong.append("can't be mounted")
    elif "fsck ended with 0\n" not in said:
        wrong.append("isn't clean after replay")
    wrong += [line for line in said.splitlines() if TROUBLE.search(line)]
    wrong += life.wrong(state, files)
    return Verdict(state, wrong, life.kind.replayed in said, said)
