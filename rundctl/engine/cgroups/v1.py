"""A pool's slots in a v1 hierarchy: a slot becomes the container's cgroup by rename(2), and goes back by it.

A crash may come between the renames in two hierarchies, so what is ours in each is found by looking: the slot's name if it is there, else the container's,
if it carries the slot's mark. The mark is an extended attribute, which a cgroup keeps when it is renamed.
"""

from __future__ import annotations

from rundctl.host import cgroupfs
from rundctl.host.pidfd import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.host.cgroupfs import Hierarchy


def make(hierarchy: Hierarchy, path: str, mark: str) -> None:
    """Make a slot's cgroup. HostError if the kernel refuses."""
    cgroupfs.make(hierarchy, path)
    hierarchy.mark(path, mark)


def take(hierarchy: Hierarchy, slot: str, path: str, mark: str) -> None:
    """Give a slot the container's name; one that somebody has removed is made anew. FileExistsError if the name is in use."""
    try:
        hierarchy.rename(slot, path)
    except FileNotFoundError:
        make(hierarchy, slot, mark)
        hierarchy.rename(slot, path)


def ours(hierarchy: Hierarchy, slot: str, path: str, mark: str) -> str | None:
    """Where a slot's cgroup is now; None if somebody has removed it."""
    if hierarchy.exists(slot):
        return slot
    return path if hierarchy.marked(path) == mark else None


def put_back(hierarchy: Hierarchy, slot: str, path: str, mark: str) -> None:
    """Give it the slot's name again, if it has another. OSError if the kernel refuses."""
    now = ours(hierarchy, slot, path, mark)
    if now == slot:
        hierarchy.mark(slot, mark)  # whoever made it may have been killed in between
    elif now is not None:
        hierarchy.rename(now, slot)


def kill(hierarchy: Hierarchy, path: str) -> None:
    """Kill all members, one by one; they may fork meanwhile, so the caller asks again."""
    for pid in hierarchy.processes(path):
        process = Process.open(pid) if pid else None  # 0: of another pid namespace
        if process is not None:
            with process:
                if pid in hierarchy.processes(path):  # the pid could have become another's before we held it
                    process.kill()


def is_empty(hierarchy: Hierarchy, path: str) -> bool:
    """Whether it has no members."""
    return not hierarchy.processes(path)
