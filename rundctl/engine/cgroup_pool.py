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
    the stages ``cgroup`` and ``shim`` of ``--timings``, and there ``join`` and ``clone``, which the launcher does beside them.
"""

from __future__ import annotations

import os
from contextlib import suppress

from rundctl.errors import ConfigError
from rundctl.host import cgroupfs
from rundctl.host.cgroupfs import Hierarchy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from rundctl.host.cgroup_settings import Limits

    Facts = dict[str, Any]

DEFAULT_PARENT = "/rundctl"


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


class Lease:
    """The cgroups of one container, made on the spot. Other kinds (slots of a pool, systemd's scopes) are subclasses with their own ``kind``.

    The life of one: named, and its `facts` recorded with the claim of the id; `make`; configured, and joined by the launcher; and by way of the record,
    which may be all that is left of who made it, `give_back`.
    """

    __slots__ = ("places",)
    kind = "plain"

    def __init__(self, places: list[Place]) -> None:
        self.places = places

    @property
    def directories(self) -> list[str]:
        """One directory a hierarchy."""
        return [place.directory for place in self.places]

    def facts(self) -> Facts:
        """What the container's record keeps, as ``cgroups``: enough to find the cgroups and to give them back."""
        return {"kind": self.kind, "places": [place.facts() for place in self.places]}

    def make(self, record: Callable[[Facts], None]) -> None:
        """Have the cgroups there. HostError if the kernel refuses.

        If they become others than `facts` told, ``record`` is called with the new facts, before anything of the old ones is given up.
        """
        del record
        for place in self.places:
            cgroupfs.make(place.hierarchy, place.path)

    def join_descriptors(self) -> tuple[list[int], int | None]:
        """Open what the launcher joins by: ``cgroup.procs`` of each v1 cgroup, and the v2 directory."""
        v1: list[int] = []
        v2 = None
        for place in self.places:
            if place.hierarchy.is_v2:
                v2 = os.open(place.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            else:
                v1.append(os.open(f"{place.directory}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
        return v1, v2

    def joined(self) -> None:
        """The launcher has joined, or never will. For kinds that hold a place for it until then."""

    def describe(self) -> str:
        """For ``--debug``: what kind it is, and why."""
        return "made on the spot"


def path_of(cgroups_path: str, container_id: str, root_name: str = "") -> str:
    """The path below each hierarchy that ``linux.cgroupsPath`` means (runtime-spec, config-linux, "Cgroups Path").

    Without it the container's id, and for another root than the default one the root's name, which may have a container of the same id.
    ``slice:prefix:name`` means nothing but itself here, as in runc (with --systemd-cgroup: `cgroup_systemd`). ConfigError if the path leaves the hierarchy.
    """
    if not cgroups_path:
        return f"{DEFAULT_PARENT}/{container_id}{'.' if root_name else ''}{root_name}"
    path = cgroups_path if cgroups_path.startswith("/") else f"{DEFAULT_PARENT}/{cgroups_path}"
    if ".." in path.split("/") or path == "/":
        raise ConfigError(f"config.json: linux.cgroupsPath: {cgroups_path!r} leaves the cgroup hierarchy")
    return os.path.normpath(path)


def lease(hierarchies: Sequence[Hierarchy], path: str) -> Lease:
    """Name a container's cgroups, so that the record can hold them before they exist."""
    return Lease([Place(hierarchy, path) for hierarchy in hierarchies])


def places(facts: Facts, hierarchy: type[Hierarchy] = Hierarchy) -> list[Place]:
    """The cgroups that a record names; nothing is asked of the kernel."""
    found = []
    for directory, controllers, path in facts["places"]:
        names = frozenset(controllers.split(",")) if controllers else frozenset()
        found.append(Place(hierarchy(directory, names, is_v2=not controllers), path))
    return found


def limited(facts: Facts, limits: Limits) -> None:
    """To be called once a container's cgroups were held to limits: whoever else keeps them is told. HostError if that fails."""
    if facts["kind"] == "systemd":
        from rundctl.engine import cgroup_systemd

        cgroup_systemd.limited(facts, limits)


def give_back(facts: Facts, hierarchy: type[Hierarchy] = Hierarchy) -> None:
    """Give a container's cgroups back by its record's facts; what is given back already is fine. HostError if processes stay in one."""
    if facts["kind"] == "systemd":
        from rundctl.engine import cgroup_systemd

        cgroup_systemd.give_back(facts, hierarchy)
        return
    for place in places(facts, hierarchy):
        cgroupfs.remove(place.hierarchy, place.path)
        _leave_parent(place)


def _leave_parent(place: Place) -> None:
    """Remove our own default parent with its last container."""
    parent = os.path.dirname(place.path)
    if parent == DEFAULT_PARENT:
        with suppress(OSError):  # other containers are in it
            place.hierarchy.rmdir(parent)
