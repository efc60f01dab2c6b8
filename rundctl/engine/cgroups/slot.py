"""One slot of a pool as the kernel has it: a cgroup in every hierarchy, v1 or v2. Who may touch it is decided by leases (`cgroups.ownership`)."""

from __future__ import annotations

import os
import time

from rundctl.engine.cgroups import scrub as cgroup_scrub
from rundctl.engine.cgroups import v1, v2
from rundctl.errors import HostError, words
from rundctl.host import cgroupfs
from rundctl.host.cgroupfs import Place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from rundctl.host.cgroupfs import Hierarchy

PREFIX = "rundctl.pool."
EMPTY_TIMEOUT_S = 2.0
KILL_TIMEOUT_S = 10.0  # members may be waiting for the disk, or for a kernel that is busy
_POLL_S = 0.005


def path_of(parent: str, number: int) -> str:
    """A slot's path."""
    return f"{parent.rstrip('/')}/{PREFIX}{number}"


class Slot:
    """A slot, and the places that a container has it at: in v1 under the name it asked for, in v2 under the slot's own."""

    __slots__ = ("_mark", "_wanted", "number", "path", "places")

    def __init__(self, number: int, parent: str, hierarchies: Sequence[Hierarchy], wanted: str = "") -> None:
        """``wanted`` is the path that the container asked for; without one nobody has the slot."""
        self.number = number
        self.path = path_of(parent, number)
        self._mark = str(number)
        self._wanted = wanted
        self.places = [Place(each, self.path if each.is_v2 else wanted or self.path) for each in hierarchies]

    def make(self) -> None:
        """Make what is not there, parents too. HostError if the kernel refuses."""
        for hierarchy in (place.hierarchy for place in self.places):
            (v2 if hierarchy.is_v2 else v1).make(hierarchy, self.path, self._mark)

    def is_whole(self) -> bool:
        """Whether it is there in every hierarchy, under its own name."""
        return all(place.hierarchy.exists(self.path) for place in self.places)

    def take(self) -> None:
        """Have it at the container's places. FileExistsError if somebody else's cgroup is at one, HostError if the kernel refuses."""
        for place in self.places:
            try:
                if place.hierarchy.is_v2:
                    v2.take(place.hierarchy, self.path, self._wanted, self._mark)
                else:
                    v1.take(place.hierarchy, self.path, place.path, self._mark)
            except FileExistsError:
                raise
            except OSError as error:
                raise HostError(f"rename cgroup {place.hierarchy.directory}{self.path}: {words(error)}") from error

    def put_back(self) -> None:
        """Have it under its own name. HostError if the kernel refuses."""
        for place in self.places:
            if not place.hierarchy.is_v2:
                try:
                    v1.put_back(place.hierarchy, self.path, place.path, self._mark)
                except OSError as error:
                    raise HostError(f"rename cgroup {place.directory}: {words(error)}") from error

    def wait_empty(self, *, kill: bool = False) -> None:
        """Wait until it has no members; killing them, if asked, as often as it takes. HostError if it has when the time is over."""
        deadline = time.monotonic() + (KILL_TIMEOUT_S if kill else EMPTY_TIMEOUT_S)
        for hierarchy, path in self._now():
            version = v2 if hierarchy.is_v2 else v1
            while not version.is_empty(hierarchy, path):
                where = hierarchy.directory + path
                if time.monotonic() > deadline:
                    raise HostError(
                        f"give back cgroup {where}: processes remain in it", hint=f"see {where}/cgroup.procs"
                    )
                if kill:
                    version.kill(hierarchy, path)
                time.sleep(_POLL_S)

    def scrub(self, counters: dict[str, str]) -> str:
        """Make it as good as new; why it is not, or nothing. ``counters`` gets what cannot be reset."""
        for hierarchy, path in self._now():
            spoilt = cgroup_scrub.scrub(hierarchy, path, counters)
            if spoilt:
                return f"{hierarchy.directory}{path}: {spoilt}"
        return ""

    def remove(self) -> None:
        """Remove it, whatever name it has. HostError if something stays in it."""
        for hierarchy, path in self._now():
            cgroup_scrub.remove_children(hierarchy, path)
            cgroupfs.remove(hierarchy, path)

    def _now(self) -> list[tuple[Hierarchy, str]]:
        """Where it is now, where it is at all: after a crash partly under the one name, partly under the other."""
        found = []
        for place in self.places:
            hierarchy = place.hierarchy
            if hierarchy.is_v2:
                found.append((hierarchy, self.path))
                continue
            path = v1.ours(hierarchy, self.path, place.path, self._mark)
            if path is not None:
                found.append((hierarchy, path))
        return found


def missing(hierarchy: Hierarchy, path: str) -> list[str]:
    """Which of a cgroup and its parents are not there, topmost first."""
    paths = [path]
    while paths[0] != "/":
        paths.insert(0, os.path.dirname(paths[0]))
    return [each for each in paths[1:] if not hierarchy.exists(each)]


def numbers_in(hierarchies: Sequence[Hierarchy], parent: str) -> set[int]:
    """Numbers of the slots that the kernel has below a parent, under their own names."""
    names = {name for each in hierarchies for name in each.children(parent) if name.startswith(PREFIX)}
    return {int(name.removeprefix(PREFIX)) for name in names if name.removeprefix(PREFIX).isdigit()}


def name_of(hierarchies: Sequence[Hierarchy], parent: str, number: int) -> str:
    """The path that a container gave a slot in v1, found by the slot's mark; empty if it has its own name everywhere."""
    for hierarchy in hierarchies:
        for name in () if hierarchy.is_v2 else hierarchy.children(parent):
            path = f"{parent.rstrip('/')}/{name}"
            if path != path_of(parent, number) and hierarchy.marked(path) == str(number):
                return path
    return ""
