"""`python -m cibr` is the command `cibr`; with `accelerate launch -m cibr train` a run uses several devices."""

import sys

from cibr.cli import main

sys.exit(main())
