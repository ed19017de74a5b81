"""``python -m secateur`` is the command ``secateur``."""

import sys

from secateur.cli import main

sys.exit(main())
