"""``python -m rundctl``: as the installed command, for a checkout."""

from __future__ import annotations

import sys

from rundctl.cli import main

if __name__ == "__main__":
    sys.exit(main())
