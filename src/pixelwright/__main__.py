"""`python -m pixelwright` is the command line."""

import sys

from pixelwright.cli.main import main

sys.exit(main())
