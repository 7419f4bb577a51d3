"""A workload of files that are synced: a script for the guest's shell, and what has to be left.

Some workers have a folder each and change its files step by step: create, append, truncate, rename,
replace by rename, delete. A step ends with fsync of what it changed, the folder included. Before
each step its worker notes on another disk that the steps before are done. So after a crash the
folder is as it was before the noted step or as it was to be after it, but for files that the step
was writing in place: those may hold anything. Meanwhile the workers leave files in a folder of
noise and sync none of it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

NOISE = "noise"
_LINES = (1, 16, 500, 500, 3000, 12000)
"""Lengths of files in lines of 8 bytes: within a block, and up to many."""

Files = Mapping[str, str]
"""MD5 of each file's content, by path within the file system."""


def _numbers(first: int, lines: int) -> bytes:
    """What `seq` says."""
    return "".join(f"{number}\n" for number in range(first, first + lines)).encode()


def _digests(files: Mapping[str, bytes]) -> dict[str, str]:
    return {path: hashlib.md5(content).hexdigest() for path, content in files.items()}


@dataclass
class Worker:
    """`commands` step by step. `after[n]`: its files when n steps are done. `loose[n]`: what step n
    writes in place."""

    number: int
    chance: random.Random
    commands: list[str] = field(default_factory=list)
    after: list[Files] = field(default_factory=lambda: [{}])
    loose: list[set[str]] = field(default_factory=list)
    _files: dict[str, bytes] = field(default_factory=dict)
    _next: int = 0

    @property
    def folder(self) -> str:
        return f"worker{self.number}"

    def plan(self, steps: int) -> None:
        """Choose the steps."""
        self._next = (self.number + 1) * 2_000_000  # no content twice
        for step in range(steps):
            kinds = [self._create]
            if len(self._files) > 2:
                kinds += [self._append, self._truncate, self._rename, self._replace, self._delete]
            command, loose = self.chance.choice(kinds)(f"{self.folder}/{step}")
            if self.chance.random() < 0.7:
                noise = f"{NOISE}/{self.number}-{self.chance.randrange(8)}"
                command = f"{self._seq()[0]} >{noise}; {command}"
            self.commands.append(command)
            self.after.append(_digests(self._files))
            self.loose.append(loose)

    def wrong(self, done: int, found: Files) -> str | None:
        """What is wrong with the files that a crash left when the note said `done`."""
        mine = {path: md5 for path, md5 in found.items() if path.startswith(f"{self.folder}/")}
        loose = self.loose[done] if done < len(self.loose) else set()
        may_be = self.after[done : done + 2]
        if any(_without(files, loose) == _without(mine, loose) for files in may_be):
            return None
        differ = sorted(
            path
            for path in {*mine, *may_be[0]} - loose
            if all(mine.get(path) != files.get(path) for files in may_be)
        )
        step = self.commands[done] if done < len(self.commands) else "nothing"
        return (
            f"{self.folder}, {done} steps done, then {step!r}: lost or wrong: {differ or 'mixed'}"
        )

    def _seq(self) -> tuple[str, bytes]:
        first, lines = self._next, self.chance.choice(_LINES)
        self._next += lines
        return f"seq {first} {first + lines - 1}", _numbers(first, lines)

    def _any(self) -> str:
        return self.chance.choice(sorted(self._files))

    def _create(self, new: str) -> tuple[str, set[str]]:
        seq, self._files[new] = self._seq()
        return f"{seq} >{new}; sync {new} {self.folder}", {new}

    def _append(self, new: str) -> tuple[str, set[str]]:
        path = self._any()
        seq, more = self._seq()
        self._files[path] += more
        return f"{seq} >>{path}; sync {path}", {path}

    def _truncate(self, new: str) -> tuple[str, set[str]]:
        path = self._any()
        size = self.chance.randint(0, len(self._files[path]))
        self._files[path] = self._files[path][:size]
        return f"truncate -s {size} {path}; sync {path}", {path}

    def _rename(self, new: str) -> tuple[str, set[str]]:
        path = self._any()
        self._files[new] = self._files.pop(path)
        return f"mv {path} {new}; sync {self.folder}", set()

    def _replace(self, new: str) -> tuple[str, set[str]]:
        path = self._any()
        seq, self._files[path] = self._seq()
        return f"{seq} >{new}; sync {new}; mv {new} {path}; sync {self.folder}", {new}

    def _delete(self, new: str) -> tuple[str, set[str]]:
        path = self._any()
        del self._files[path]
        return f"rm {path}; sync {self.folder}", set()


def _without(files: Files, loose: set[str]) -> dict[str, str]:
    return {path: md5 for path, md5 in files.items() if path not in loose}


class Workload:
    """`workers` of `steps` steps each, at the same time."""

    def __init__(self, seed: int, *, workers: int, steps: int) -> None:
        self.workers = [Worker(n, random.Random(f"{seed}/{n}")) for n in range(workers)]
        for worker in self.workers:
            worker.plan(steps)

    def script(self, folder: str, notes: str) -> str:
        """For the file system at `folder`; notes go to the disk `notes`, a block for each worker.

        A note is the worker's number and how many of its steps are done.
        """
        names = " ".join([NOISE, *(worker.folder for worker in self.workers)])
        lines = [
            "set -e",
            f"note() {{ echo $1 $2 | dd of={notes} bs=512 seek=$1 conv=sync,notrunc oflag=direct"
            " status=none; }",
            f"cd {folder}; mkdir {names}; sync {names} .",
            "jobs=",
        ]
        for worker in self.workers:
            steps = (f"note {worker.number} {n}; {c}" for n, c in enumerate(worker.commands))
            last = f"note {worker.number} {len(worker.commands)}"
            lines += ["(", *steps, last, ') & jobs="$jobs $!"']
        return "\n".join([*lines, "for job in $jobs; do wait $job; done"])
