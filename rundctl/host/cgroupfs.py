"""Control groups as the kernel shows them, v1 and v2 (cgroups(7), Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import errno
import time

from rundctl.errors import HostError, words
from rundctl.host import cgroup_files, mountinfo, patience
from rundctl.lean import os
from rundctl.lean.contextlib import suppress

CONTROLLERS = ("cpu", "cpuset", "hugetlb", "io", "memory", "pids")  # of v2, that limits and figures need
CPUSET_INHERITED = ("cpuset.cpus", "cpuset.mems")
REMOVE_TIMEOUT_S = 2.0
_MARK = "trusted.rundctl"
_MAKE_TRIES = 20
_POLL_S = 0.005


class Hierarchy:
    """A mounted hierarchy, and the system calls on its cgroups, which are named by their path below it. They raise OSError as the kernel has it.

    Everything above works on hierarchies that it is given, so that a test can give others.
    """

    __slots__ = ("controllers", "directory", "is_v2")

    def __init__(self, directory: str, controllers: frozenset[str], *, is_v2: bool) -> None:
        """Controllers as the mount's options name them (v2: only options, see `available`)."""
        self.directory = directory
        self.controllers = controllers
        self.is_v2 = is_v2

    def mkdir(self, path: str) -> None:
        """Make a cgroup."""
        os.mkdir(self.directory + path, 0o755)

    def rmdir(self, path: str) -> None:
        """Remove a cgroup without members and children."""
        os.rmdir(self.directory + path)

    def rename(self, path: str, to: str) -> None:
        """v1 only, and within one parent (cgroup1_rename); FileExistsError even if the target is empty."""
        os.rename(self.directory + path, self.directory + to)

    def exists(self, path: str) -> bool:
        """Whether there is such a cgroup."""
        return os.path.isdir(self.directory + path)

    def children(self, path: str) -> list[str]:
        """Names of the cgroups in one; none if it does not exist."""
        try:
            with os.scandir(self.directory + path) as entries:
                return [entry.name for entry in entries if entry.is_dir()]
        except FileNotFoundError:
            return []

    def read(self, path: str, name: str) -> str:
        """A control file, without the newline at its end."""
        return cgroup_files.read(f"{self.directory}{path}/{name}")

    def look(self, path: str, name: str) -> str:
        """As `read`; empty if the kernel has none of that name, or the cgroup is gone."""
        return cgroup_files.look(f"{self.directory}{path}/{name}")

    def write(self, path: str, name: str, text: str) -> None:
        """Write once to a control file."""
        cgroup_files.write(f"{self.directory}{path}/{name}", text)

    def mark(self, path: str, text: str) -> None:
        """Mark a cgroup as ours, for as long as it exists, whatever it is renamed to."""
        os.setxattr(self.directory + path, _MARK, text.encode())

    def marked(self, path: str) -> str | None:
        """The mark of a cgroup; None if it has none, or does not exist."""
        try:
            return os.getxattr(self.directory + path, _MARK).decode()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODATA, errno.ENOTSUP):
                return None
            raise

    def available(self, path: str) -> set[str]:
        """Controllers of a cgroup: in v2 those that its parent has enabled for it."""
        return set(self.read(path, "cgroup.controllers").split()) if self.is_v2 else set(self.controllers)

    def processes(self, path: str) -> list[int]:
        """Pids of the members, none if there is no such cgroup; 0 stands for each that our pid namespace does not have."""
        try:
            return [int(pid) for pid in self.read(path, "cgroup.procs").split()]
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):  # it was removed, before or after the file was opened
                return []
            raise


class Place:
    """A cgroup: its hierarchy and its path below it."""

    __slots__ = ("hierarchy", "path")

    def __init__(self, hierarchy: Hierarchy, path: str) -> None:
        self.hierarchy = hierarchy
        self.path = path

    @property
    def directory(self) -> str:
        """The cgroup's directory."""
        return self.hierarchy.directory + self.path

    def facts(self) -> list[str]:
        """For the record: the hierarchy's directory, its v1 controllers (``cpu,cpuacct``; empty: it is v2), the path."""
        controllers = "" if self.hierarchy.is_v2 else ",".join(sorted(self.hierarchy.controllers))
        return [self.hierarchy.directory, controllers, self.path]


def hierarchies(table: str = mountinfo.PATH, passed_over: list[str] | None = None) -> list[Hierarchy]:
    """Hierarchies mounted here, read-write and with their root; each once (proc_pid_mountinfo(5)).

    ``passed_over`` gets the directories of others, which nothing can be made in, and why.
    """
    found: dict[str, Hierarchy] = {}
    for line in mountinfo.read(table):
        if b" - cgroup" not in line:  # other mounts' paths, which any user may have made, can hold any byte
            continue
        mount, _, filesystem = os.fsdecode(line).partition(" - ")
        fstype, _, options = filesystem.split(" ", 2)
        _, _, device, root, directory, attributes, *_ = mount.split(" ")
        if root != "/" or "ro" in (*attributes.split(","), *options.split(",")):
            if passed_over is not None:
                passed_over.append(f"{directory} is {'read-only' if root == '/' else 'not the root of its hierarchy'}")
            continue
        known = set(options.split(",")) - {"rw", "ro", "xattr", "noprefix", "clone_children"}
        found.setdefault(device, Hierarchy(directory, frozenset(known), is_v2=fstype == "cgroup2"))
    return list(found.values())


def paths_of_process(pid: int) -> dict[str, str]:
    """A process' cgroups by controller, v2's by an empty name (proc_pid_cgroup(5)); none of a process that is gone."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {controller: path for _, controllers, path in lines for controller in controllers.split(",")}


def make(hierarchy: Hierarchy, path: str) -> list[str]:
    """Make a cgroup and its parents; returns the paths of those that were not there, topmost first. HostError naming what could not be made."""
    made: list[str] = []
    for tries_left in range(_MAKE_TRIES, 0, -1):
        try:
            _make(hierarchy, path, made)
        except FileNotFoundError as error:  # an emptied parent was removed between two mkdirs
            if tries_left == 1:
                raise HostError(f"make cgroup {hierarchy.directory}{path}: {words(error)}") from error
        except OSError as error:
            raise HostError(f"make cgroup {hierarchy.directory}{path}: {words(error)}") from error
        else:
            return made
    raise AssertionError("the loop above returns or raises")


def _make(hierarchy: Hierarchy, path: str, made: list[str]) -> None:
    parent = ""
    for part in path.strip("/").split("/"):
        if hierarchy.is_v2:
            delegate(hierarchy, parent)
        here = f"{parent}/{part}"
        try:
            hierarchy.mkdir(here)
        except FileExistsError:
            pass  # what follows is done all the same: whoever is making it, or was killed at that, may not have come so far
        else:
            if here not in made:
                made.append(here)
        if hierarchy.is_v2:
            _keep_valid(hierarchy, here)
        elif "cpuset" in hierarchy.controllers:
            inherit_cpuset(hierarchy, parent, here)
        parent = here


def inherit_cpuset(hierarchy: Hierarchy, parent: str, path: str) -> None:
    """Give a v1 cpuset that has none its parent's processors and memory, as a new one: no process can join it without. OSError if it cannot be."""
    for name in CPUSET_INHERITED:
        if not hierarchy.read(path, name).strip():
            hierarchy.write(path, name, hierarchy.read(parent, name))


def delegate(hierarchy: Hierarchy, path: str) -> None:
    """Enable in a v2 cgroup, for its children, what limits and figures need (cgroup-v2.rst, "Controlling Controllers").

    What cannot be enabled is left: a cgroup that has processes itself cannot have children with domain controllers (EBUSY), a threaded one takes only
    some, a controller may be bound to v1. The children then are cgroups all the same, with fewer controllers.
    """
    enabled = set(hierarchy.read(path, "cgroup.subtree_control").split())
    missing = [name for name in CONTROLLERS if name in hierarchy.available(path) and name not in enabled]
    if not missing:
        return
    try:
        hierarchy.write(path, "cgroup.subtree_control", " ".join(f"+{name}" for name in missing))
    except OSError:
        for name in missing:
            with suppress(OSError):
                hierarchy.write(path, "cgroup.subtree_control", f"+{name}")


def _keep_valid(hierarchy: Hierarchy, path: str) -> None:
    """A child of a threaded cgroup is invalid until it is made threaded, and nothing could be born in it (cgroup-v2.rst, "Threads")."""
    if hierarchy.read(path, "cgroup.type") == "domain invalid":
        hierarchy.write(path, "cgroup.type", "threaded")


def remove(hierarchy: Hierarchy, path: str, timeout_s: float = REMOVE_TIMEOUT_S) -> None:
    """Remove a cgroup without children; one that is gone is fine. HostError if processes stay in it.

    A member that has just ended may keep it busy until its parent has reaped it, so this tries for a while.
    """
    deadline = time.monotonic() + patience.seconds(timeout_s)
    where = hierarchy.directory + path
    while True:
        try:
            hierarchy.rmdir(path)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise HostError(f"remove cgroup {where}: {words(error)}") from error
            if time.monotonic() > deadline:
                raise HostError(
                    f"remove cgroup {where}: processes remain in it", hint=f"see {where}/cgroup.procs"
                ) from error
            time.sleep(_POLL_S)
            continue
        return
