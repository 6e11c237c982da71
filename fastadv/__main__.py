"""`python -m fastadv`: the same as the command `fastadv`."""

import sys

from fastadv.cli import main

sys.exit(main())
