"""The paper's third idea: a container starts in a cgroup that was made before.

Problem
    Making, configuring and joining a container's cgroups takes kernel locks: at 200 starts at once that was most of the time of a start.
Mechanism
    A *lease* names the cgroups of one container, in every hierarchy of the host. The launcher joins them before anything else exists, so that shim, QEMU
    and all they allocate are born inside. Today every lease is made on the spot, below the parent that ``linux.cgroupsPath`` asks for; the pool of
    ready-made slots will fill this interface without changing it.
Cost
    One mkdir a hierarchy and, in the launcher, in parallel with planning, one migration a v1 hierarchy.
Invariants
    The requested parent is always honoured, and left in place as runc leaves it; our own default parent goes with its last container.
Measured by
    the stages ``cgroup`` and ``shim`` of ``--timings``.
"""

from __future__ import annotations

import os
from contextlib import suppress

from rundctl.errors import ConfigError
from rundctl.host import cgroupfs

_DEFAULT_PARENT = "/rundctl"
_SYSTEMD_PARTS = 3


class Lease:
    """The cgroups of one container."""

    __slots__ = ("_places",)

    def __init__(self, places: list[tuple[cgroupfs.Hierarchy, str]]) -> None:
        self._places = places

    @property
    def directories(self) -> list[str]:
        """One directory a hierarchy."""
        return [hierarchy.directory + path for hierarchy, path in self._places]

    def make(self) -> None:
        """Make the cgroups. HostError if the kernel refuses."""
        for hierarchy, path in self._places:
            cgroupfs.make(hierarchy, path)

    def join_descriptors(self) -> tuple[list[int], int | None]:
        """Open what the launcher joins by: ``cgroup.procs`` of each v1 cgroup, and the v2 directory."""
        v1: list[int] = []
        v2 = None
        for hierarchy, path in self._places:
            directory = hierarchy.directory + path
            if hierarchy.is_v2:
                v2 = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            else:
                v1.append(os.open(f"{directory}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
        return v1, v2


def path_of(cgroups_path: str, container_id: str, root_name: str = "") -> str:
    """The path below each hierarchy that ``linux.cgroupsPath`` means (runtime-spec, config-linux, "Cgroups Path").

    Without it the container's id, and for another root than the default one the root's name, which may have a container of the same id.
    systemd's form ``slice:prefix:name`` is made as a plain directory, until the systemd driver comes. ConfigError if the path leaves the hierarchy.
    """
    if not cgroups_path:
        return f"{_DEFAULT_PARENT}/{container_id}{'.' if root_name else ''}{root_name}"
    parts = cgroups_path.split(":")
    if len(parts) == _SYSTEMD_PARTS:
        slice_, prefix, name = parts
        return f"/{slice_ or 'system.slice'}/{prefix}-{name}.scope"
    path = cgroups_path if cgroups_path.startswith("/") else f"{_DEFAULT_PARENT}/{cgroups_path}"
    if ".." in path.split("/") or path == "/":
        raise ConfigError(f"config.json: linux.cgroupsPath: {cgroups_path!r} leaves the cgroup hierarchy")
    return os.path.normpath(path)


def plan(cgroups_path: str, container_id: str, root_name: str = "") -> Lease:
    """Name a container's cgroups, so that the record can hold them before they exist."""
    path = path_of(cgroups_path, container_id, root_name)
    return Lease([(hierarchy, path) for hierarchy in cgroupfs.hierarchies()])


def give_back(directories: list[str]) -> None:
    """Remove a lease's cgroups; those that are gone are fine. HostError if processes stay in one."""
    for directory in directories:
        cgroupfs.remove(directory)
        parent = os.path.dirname(directory)
        if parent.endswith(_DEFAULT_PARENT):
            with suppress(OSError):  # other containers are in it
                os.rmdir(parent)
