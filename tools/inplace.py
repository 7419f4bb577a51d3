"""Build the extension modules and link them beside their sources, for work in the checkout."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
build = root / "build" / f"inplace-{sys.implementation.cache_tag}"
bin_dir = Path(sys.executable).parent
environment = os.environ | {"PATH": f"{bin_dir}:{os.environ['PATH']}"}

build.parent.mkdir(exist_ok=True)
with (build.parent / ".lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    setup = ["meson", "setup", str(build), str(root)]
    if (build / "build.ninja").exists():
        setup.append("--reconfigure")
    subprocess.run(setup, check=True, env=environment, stdout=subprocess.DEVNULL)
    subprocess.run(["ninja", "-C", str(build), "--quiet"], check=True, env=environment)
    for library in build.glob("*.so"):
        stem = library.name.split(".")[0]  # unique in the project: meson names targets by it
        for source in (root / "src").rglob(f"{stem}.pyx"):
            target = source.parent / library.name
            target.unlink(missing_ok=True)
            target.symlink_to(library)
