"""Descriptors 0, 1 and 2, which callers such as daemons may have closed."""

from __future__ import annotations

import _stat as stat
import fcntl

from rundctl.lean import os

_LAST = 2
_NULL = os.makedev(1, 3)


class Streams:
    """What a caller's stdio is, as far as a container can have the same.

    ``nulls``: a bit for each of 0, 1, 2 that is /dev/null; ``joined``: stdout and stderr are one, so what is written to both keeps its order.
    """

    __slots__ = ("joined", "nulls")

    def __init__(self, nulls: int = 0, *, joined: bool = False) -> None:
        self.nulls = nulls
        self.joined = joined


def look() -> Streams:
    """What our own are, after ``fill``."""
    found = [os.fstat(fd) for fd in range(_LAST + 1)]
    nulls = [stat.S_ISCHR(info.st_mode) and info.st_rdev == _NULL for info in found]
    joined = not (nulls[1] or nulls[2]) and os.path.samestat(found[1], found[2]) and _share_an_end(found[1].st_mode)
    return Streams(sum(1 << fd for fd, is_null in enumerate(nulls) if is_null), joined=joined)


def _share_an_end(mode: int) -> bool:
    """Whether 1 and 2, which are one file, write to one place of it. A regular file that was opened twice has two, and each overwrites the other's."""
    if not stat.S_ISREG(mode) or all(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND for fd in (1, 2)):
        return True
    from rundctl.host import open_files  # 7 ms, and only here

    try:
        return open_files.are_one(1, 2)
    except OSError:  # a container's filter may deny it: probably one, if both are at the same place
        return os.lseek(1, 0, os.SEEK_CUR) == os.lseek(2, 0, os.SEEK_CUR)


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
