"""Control groups as the kernel shows them, v1 and v2 (cgroups(7), Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import errno
import os
import time

from rundctl.errors import HostError, words

_MAKE_TRIES = 20
_REMOVE_DEADLINE_S = 2.0
_REMOVE_POLL_S = 0.005


class Hierarchy:
    """A mounted hierarchy: its directory and its controllers (v2: an empty set)."""

    __slots__ = ("controllers", "directory", "is_v2")

    def __init__(self, directory: str, controllers: frozenset[str], *, is_v2: bool) -> None:
        self.directory = directory
        self.controllers = controllers
        self.is_v2 = is_v2


def hierarchies(mountinfo: str = "/proc/self/mountinfo") -> list[Hierarchy]:
    """Hierarchies mounted here, read-write and with their root; each once (proc_pid_mountinfo(5))."""
    found: dict[str, Hierarchy] = {}
    with open(mountinfo, encoding="utf-8") as file:
        for line in file:
            mount, _, filesystem = line.partition(" - ")
            fstype, _, options = filesystem.rstrip("\n").split(" ", 2)
            _, _, device, root, directory, *_ = mount.split(" ")
            if fstype not in ("cgroup", "cgroup2") or root != "/" or "ro" in mount.split(" ")[5].split(","):
                continue
            known = set(options.split(",")) - {"rw", "ro", "xattr", "noprefix", "clone_children"}
            found.setdefault(device, Hierarchy(directory, frozenset(known), is_v2=fstype == "cgroup2"))
    return list(found.values())


def make(hierarchy: Hierarchy, path: str) -> str:
    """Make a cgroup and its parents below a hierarchy; returns its directory. HostError naming it."""
    for tries_left in range(_MAKE_TRIES, 0, -1):
        try:
            return _make(hierarchy, path)
        except FileNotFoundError as error:  # an emptied parent was removed between two mkdirs
            if tries_left == 1:
                raise HostError(f"make cgroup {hierarchy.directory}{path}: {words(error)}") from error
        except OSError as error:
            raise HostError(f"make cgroup {hierarchy.directory}{path}: {words(error)}") from error
    raise AssertionError("the loop above returns or raises")


def _make(hierarchy: Hierarchy, path: str) -> str:
    directory = hierarchy.directory
    for part in path.strip("/").split("/"):
        directory = f"{directory}/{part}"
        try:
            os.mkdir(directory, 0o755)
        except FileExistsError:
            continue
        if "cpuset" in hierarchy.controllers:
            _inherit_cpuset(directory)
    return directory


def _inherit_cpuset(directory: str) -> None:
    # A new v1 cpuset is empty, and no process can join an empty one.
    for name in ("cpuset.cpus", "cpuset.mems"):
        with open(f"{directory}/../{name}", encoding="ascii") as file:
            inherited = file.read().strip()
        with open(f"{directory}/{name}", "w", encoding="ascii") as file:
            file.write(inherited)


def remove(directory: str) -> None:
    """Remove an empty cgroup; one that is gone is fine. HostError if processes stay in it.

    A member that has just ended may keep it busy until its parent has reaped it, so this tries for a while.
    """
    deadline = time.monotonic() + _REMOVE_DEADLINE_S
    while True:
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise HostError(f"remove cgroup {directory}: {words(error)}") from error
            if time.monotonic() > deadline:
                hint = f"see {directory}/cgroup.procs"
                raise HostError(f"remove cgroup {directory}: processes remain in it", hint=hint) from error
            time.sleep(_REMOVE_POLL_S)
            continue
        return
