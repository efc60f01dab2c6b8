"""``python -m rundctl``: as the installed command, for a checkout."""

from __future__ import annotations

from rundctl.cli import entry

if __name__ == "__main__":
    entry()
