"""Which kernel those get who name none. Cold: starts follow the link by `kernel.find`."""

from __future__ import annotations

import os

from rundctl.errors import HostError
from rundctl.guest import kernel


def name(home: str) -> str:
    """Name of the default kernel, "" if there is none."""
    try:
        return os.readlink(f"{home}/kernels/{kernel.CURRENT}")
    except OSError:
        return ""


def use(home: str, wanted: str) -> None:
    """Make a kernel the default. HostError naming those there are if it is none of them."""
    known = kernel.names(home)
    if wanted not in known:
        raise HostError(
            f"no guest kernel {wanted} in {home}/kernels",
            hint=f"there are: {', '.join(known) or 'none'}; rundctl kernel build",
        )
    kernel.make_current(home, wanted)
