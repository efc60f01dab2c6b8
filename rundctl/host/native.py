"""Where the two C programs lie: built by ``native/build.py`` when the package is built."""

from __future__ import annotations

from rundctl.errors import HostError
from rundctl.lean import os

_DIRECTORY = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "_native")


def program(name: str) -> str:
    """Absolute path of ``agent`` or ``shim``. HostError if the package was installed without being built."""
    path = os.path.join(_DIRECTORY, name)
    if not os.access(path, os.X_OK):
        raise HostError(f"{path} is missing", hint="install rundctl with pip, which builds it")
    return path
