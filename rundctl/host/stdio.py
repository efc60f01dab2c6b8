"""Descriptors 0, 1 and 2, which callers such as daemons may have closed."""

from __future__ import annotations

import os

_LAST = 2


def fill() -> None:
    """Open /dev/null under those of 0, 1, 2 that are closed.

    Else the next files we open take these numbers, and the container reads or writes them as its stdio: a log, or a lock that it then keeps.
    """
    fd = 0
    while fd <= _LAST:
        fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)  # the lowest free number, open(2)
        if fd <= _LAST:
            os.set_inheritable(fd, True)
    os.close(fd)
