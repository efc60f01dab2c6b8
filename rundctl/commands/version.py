"""What ``--version`` prints: docker parses the lines by their first word."""

from __future__ import annotations

import os

import rundctl

SPEC = "1.2.1"


def text() -> str:
    """Lines ``rundctl version``, ``commit`` (if the build knew one) and ``spec``."""
    lines = [f"rundctl version {rundctl.__version__}"]
    if commit := _commit():
        lines.append(f"commit: {commit}")
    lines.append(f"spec: {SPEC}")
    return "\n".join(lines) + "\n"


def _commit() -> str:
    """What the packaging hook noted; empty in a checkout."""
    try:
        with open(os.path.join(os.path.dirname(rundctl.__file__), "_native/COMMIT"), encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""
