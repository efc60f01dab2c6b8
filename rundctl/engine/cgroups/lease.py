"""What a container's cgroups are to whoever makes, uses or gives them back, whatever kind they are (`cgroups.kinds`)."""

from __future__ import annotations

from rundctl.host import machine
from rundctl.host.cgroupfs import Hierarchy, Place
from rundctl.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from rundctl.host.cgroup_settings import Limits

    Facts = dict[str, Any]

_KVM_ATTACHES_NOTHING = (6, 13)  # from here on its kernel thread is the VM's own (vhost_task)


class Lease:
    """The cgroups of one container.

    The life of one: named, and its `facts` recorded with the claim of the id; `make`; configured, and joined by the launcher. Later all that is left of it is
    the record, out of which `recorded` makes it again, to be asked, or given back.
    """

    __slots__ = ("places",)
    kind = ""  # by which a record's facts find their class

    def __init__(self, places: list[Place]) -> None:
        self.places = places

    @classmethod
    def recorded(cls, facts: Facts, hierarchy: type[Hierarchy] = Hierarchy) -> Lease:
        """What a record tells of; nothing is asked of the kernel."""
        return cls(places(facts, hierarchy))

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
        raise NotImplementedError

    def let_go(self) -> None:
        """Undo the naming, if no record came to be: what `give_back` cannot know."""

    def join_descriptors(self) -> tuple[list[int], int | None]:
        """Open what the launcher joins by: ``tasks`` of each v1 cgroup, and the v2 directory.

        The launcher has one thread. A thread that moves itself takes no lock of all processes, for which the kernel waits for an RCU grace period: 3 to 20 ms
        (``cgroup_procs_write_start``, Linux 5.5). By ``cgroup.procs`` it would.
        """
        v1: list[int] = []
        v2 = None
        for place in self.places:
            if place.hierarchy.is_v2:
                v2 = os.open(place.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            else:
                v1.append(os.open(f"{place.directory}/tasks", os.O_WRONLY | os.O_CLOEXEC))
        return v1, v2

    def attach_descriptor(self) -> int | None:
        """Open the ``cgroup.procs`` of one of the cgroups: what the shim needs where KVM attaches a thread to them. None if it does not, or there is none."""
        if not self.places or machine.kernel() >= _KVM_ATTACHES_NOTHING:
            return None
        return os.open(f"{self.directories[0]}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)

    def joined(self) -> None:
        """The launcher has joined, or never will. For kinds that hold a place for it until then."""

    def limited(self, limits: Limits) -> None:
        """The cgroups are held to limits now: whoever else keeps them is told. HostError if that fails."""

    def baseline(self) -> dict[str, str]:
        """What the cgroups' counters had before the container, by file: those that nothing could reset. None in cgroups that are new."""
        return {}

    def give_back(self, *, unfinished: bool = False) -> str:
        """Give the cgroups back; what is given back already is fine. HostError if processes stay in one.

        With ``unfinished`` they are those of a create that was killed: what it has started ends by itself, but on a busy host may only be about to join.

        What came of it, for ``--debug``. Called by who holds the container's lock, so never twice at once.
        """
        raise NotImplementedError

    def describe(self) -> str:
        """For ``--debug``: what kind it is, and why."""
        raise NotImplementedError


def places(facts: Facts, hierarchy: type[Hierarchy] = Hierarchy) -> list[Place]:
    """The cgroups that a record names; nothing is asked of the kernel."""
    found = []
    for directory, controllers, path in facts["places"]:
        names = frozenset(controllers.split(",")) if controllers else frozenset()
        found.append(Place(hierarchy(directory, names, is_v2=not controllers), path))
    return found
