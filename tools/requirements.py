"""List what pip has to install for `build` or `dev`, one requirement a line.

The package is built without isolation, so that its build folder stays valid from one build to the
next; what builds it therefore is in the environment too.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
requirements = [*project["build-system"]["requires"], "ninja", *project["project"]["dependencies"]]
if sys.argv[1:] == ["dev"]:
    requirements += project["project"]["optional-dependencies"]["dev"]
print("\n".join(requirements))
