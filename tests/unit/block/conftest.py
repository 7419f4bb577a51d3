import sys
from pathlib import Path

# The host in a process of the data plane's tests moves the blocks here as well.
sys.path.insert(0, str(Path(__file__).parent.parent / "dataplane"))
