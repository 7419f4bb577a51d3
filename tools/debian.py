"""Debian packages without root: fetch a dependency closure with apt, unpack it into a folder.

apt runs on a private root (its own sources, lists, status and cache), so neither the machine's
package lists nor its installed packages matter. What the machine's configuration says about
reaching an archive (mirror, proxies, certificates, auth.conf) is honoured; signatures are checked.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

DEFAULT_MIRROR = "http://deb.debian.org/debian"
KEYRING = "debian-archive-keyring"
ROOT = Path(__file__).resolve().parent.parent


class ToolError(Exception):
    """One clear line that says what is missing and what to do."""


def cache_directory() -> Path:
    """Where fetched and built things go: $SHADOWBELL_CACHE, else .cache in the project."""
    return Path(os.environ.get("SHADOWBELL_CACHE") or ROOT / ".cache").resolve()


def say(line: str) -> None:
    print(f"shadowbell: {line}", flush=True)


def main(action: Callable[[], None]) -> None:
    """Runs a tool: an expected failure is one line on stderr and exit code 2."""
    try:
        action()
    except ToolError as error:
        print(f"shadowbell: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def run(command: Sequence[str | Path], *, folder: Path | None = None, **environment: str) -> str:
    """Runs a command and returns its output; ToolError with the last line it said when it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        cwd=folder,
        env={**os.environ, "LC_ALL": "C", **environment},
    )
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        errors = [line for line in said if line.startswith("E:")] or said[-1:]
        raise ToolError(f"{Path(command[0]).name} failed: {' '.join(errors)}")
    return done.stdout


def require(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise ToolError(f"needs {', '.join(missing)}: run this on Debian or Ubuntu")


class Archive:
    """Debian suites under a private apt root in `folder`."""

    def __init__(self, folder: Path, suites: Sequence[str], architecture: str) -> None:
        require("apt-get", "apt-config", "dpkg-deb")
        self.folder = folder
        self._configuration = folder / "apt.conf"
        self.packages = folder / "cache/archives"
        for name in ("state/lists/partial", "cache/archives/partial", "parts"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "state/status").touch()
        settings = {
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Dir::State": f"{folder}/state",
            "Dir::State::status": f"{folder}/state/status",
            "Dir::Cache": f"{folder}/cache",
            "Dir::Etc::main": f"{folder}/parts/none",
            "Dir::Etc::parts": f"{folder}/parts",
            "Dir::Etc::preferences": f"{folder}/parts/none",
            "Dir::Etc::preferencesparts": f"{folder}/parts",
        }
        reach = [
            line
            for line in run(["apt-config", "dump"]).splitlines()
            if line.startswith("Acquire::")
        ]
        mirror, keyring = host_mirror(), self._keyring()
        settings |= {
            "Dir::Etc::sourcelist": f"{folder}/sources.list",
            "Dir::Etc::sourceparts": f"{folder}/parts",
        }
        self._configure(reach, settings)
        (folder / "sources.list").write_text(
            "".join(f"deb [signed-by={keyring}] {mirror} {suite} main\n" for suite in suites)
        )

    def _configure(self, reach: Sequence[str], settings: dict[str, str]) -> None:
        # The machine's own apt.conf.d is left out: its hooks belong to the machine's package lists.
        lines = [*reach, *(f'{name} "{value}";' for name, value in settings.items())]
        self._configuration.write_text("\n".join(lines) + "\n")

    def _apt(self, *arguments: str) -> str:
        return run(["apt-get", *arguments], APT_CONFIG=str(self._configuration))

    def _keyring(self) -> Path:
        """Debian's archive keys: the machine's, else those that its own archive (Ubuntu's) has."""
        if found := _key_file(Path("/")):
            return found
        lists, unpacked = self.folder / "host", self.folder / "keyring"
        (lists / "lists/partial").mkdir(parents=True, exist_ok=True)
        private = (
            f"-oDir::State::lists={lists}/lists",
            f"-oDir::Cache={lists}",
            "-oAPT::Sandbox::User=root",
        )
        try:
            run(["apt-get", *private, "update"])
            run(["apt-get", *private, "download", KEYRING], folder=lists)
            unpack(list(lists.glob(f"{KEYRING}_*.deb")), unpacked)
        except ToolError as error:
            raise ToolError(f"needs Debian's keys: apt-get install {KEYRING} ({error})") from error
        if found := _key_file(unpacked):
            return found
        raise ToolError(f"needs Debian's keys: apt-get install {KEYRING}")

    def update(self) -> None:
        self._apt("update", "--error-on=any")

    def fetch(self, packages: Sequence[str], *, suite: str) -> list[Path]:
        """Downloads `packages` (a name, or name/suite) with all they depend on; the .deb files."""
        arguments = ["install", "-y", "-t", suite, *packages]
        listing = self._apt(*arguments, "--print-uris")
        names = [line.split()[1] for line in listing.splitlines() if line.startswith("'")]
        self._apt(*arguments, "--download-only")
        return [self.packages / name for name in names]


def _key_file(root: Path) -> Path | None:
    base = root / "usr/share/keyrings" / KEYRING
    for path in (base.with_suffix(".gpg"), base.with_suffix(".pgp")):
        if path.exists():
            return path
    return None


def host_mirror() -> str:
    """The Debian mirror this machine's apt is set to, else Debian's own."""
    if chosen := os.environ.get("SHADOWBELL_DEBIAN_MIRROR"):
        return chosen.rstrip("/")
    targets = run(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"])
    for uri in targets.split():
        if uri.rstrip("/").endswith("/debian"):
            return uri.rstrip("/")
    return DEFAULT_MIRROR


def unpack(packages: Sequence[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for package in packages:
        run(["dpkg-deb", "-x", package, folder])


def host_architecture() -> str:
    return run(["dpkg", "--print-architecture"]).strip()
