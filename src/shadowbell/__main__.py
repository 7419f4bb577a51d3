"""`python -m shadowbell`."""

import sys

from shadowbell.cli import main

sys.exit(main())
