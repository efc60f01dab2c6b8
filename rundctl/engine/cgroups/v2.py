"""A pool's slots in the v2 hierarchy, which knows no rename: a slot keeps its name, and the container's record says which it is.

Everything of a container is born in it (CLONE_INTO_CGROUP).
"""

from __future__ import annotations

from contextlib import suppress

from rundctl.engine.cgroups import v1
from rundctl.host import cgroupfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.host.cgroupfs import Hierarchy


def make(hierarchy: Hierarchy, path: str, mark: str) -> None:
    """Make a slot, its parent's controllers delegated. HostError if the kernel refuses."""
    cgroupfs.make(hierarchy, path)
    hierarchy.mark(path, mark)


def take(hierarchy: Hierarchy, slot: str, wanted: str, mark: str) -> None:
    """Have it there: one that somebody has removed is made anew. FileExistsError if there is a cgroup of the wanted name, HostError if the kernel refuses."""
    if wanted and hierarchy.exists(wanted):
        raise FileExistsError(wanted)
    if not hierarchy.exists(slot):
        make(hierarchy, slot, mark)


def kill(hierarchy: Hierarchy, path: str) -> None:
    """Kill all members, and those of its children, at once (Linux 5.14); else one by one."""
    with suppress(FileNotFoundError):
        hierarchy.write(path, "cgroup.kill", "1")
        return
    v1.kill(hierarchy, path)


def is_empty(hierarchy: Hierarchy, path: str) -> bool:
    """Whether neither it nor a child has members."""
    with suppress(OSError):
        return "populated 1" not in hierarchy.read(path, "cgroup.events").splitlines()
    return True
