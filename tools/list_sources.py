"""List the package's files for meson.build; with --extensions, the Cython modules to compile.

One path a line, relative to the project's root.
"""

import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
suffixes = {".pyx"} if "--extensions" in sys.argv[1:] else {".py", ".pyi", ".pxd", ".typed"}
files = [path for path in (root / "src").rglob("*") if path.suffix in suffixes]
print("\n".join(sorted(str(path.relative_to(root)) for path in files)))
