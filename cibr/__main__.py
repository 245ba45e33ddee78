"""Entry point of `python -m cibr`, the command `cibr`; `accelerate launch -m cibr train` uses
several devices.
"""

import sys

from cibr.cli import main

sys.exit(main())
