"""List the package's files for meson.build, one a line, relative to the project's root."""

import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
suffixes = {".pyx"} if "--extensions" in sys.argv[1:] else {".py", ".pyi", ".typed"}
files = (root / "src").rglob("*")
print("\n".join(sorted(str(f.relative_to(root)) for f in files if f.suffix in suffixes or f.name == "py.typed" and ".typed" in suffixes)))
