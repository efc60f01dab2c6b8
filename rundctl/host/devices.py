"""Which device numbers mean something on this host (sysfs, "/sys/dev")."""

from __future__ import annotations

from rundctl.lean import os


def exists(kind: str, major: int, minor: int, path: str = "") -> bool:
    """Whether the kernel has such a device (``kind``: b, or c and u), or the node at ``path`` is of that number. Where nobody can tell: yes."""
    if not os.path.isdir("/sys/dev/char"):
        return True
    directory = "block" if kind == "b" else "char"
    return os.path.exists(f"/sys/dev/{directory}/{major}:{minor}") or _is_node(path, major, minor)


def _is_node(path: str, major: int, minor: int) -> bool:
    """Not every driver has a place in sysfs for its nodes."""
    try:
        found = os.stat(path).st_rdev
    except OSError:
        return False
    return (os.major(found), os.minor(found)) == (major, minor)
