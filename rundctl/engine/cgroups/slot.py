"""One slot of a pool as the kernel has it: a cgroup in every hierarchy, of both versions. Who may touch it is decided by leases (`cgroups.ownership`)."""

from __future__ import annotations

import time

from rundctl.engine.cgroups import paths
from rundctl.errors import HostError, words
from rundctl.host import cgroupfs, patience
from rundctl.host.cgroupfs import Place
from rundctl.host.pidfd import Process
from rundctl.lean.contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from rundctl.host.cgroupfs import Hierarchy

EMPTY_TIMEOUT_S = 2.0
KILL_TIMEOUT_S = 10.0  # members may be waiting for the disk, or for a kernel that is busy
_POLL_S = 0.005


class _Part:
    """A slot in one hierarchy."""

    __slots__ = ("_mark", "_wanted", "hierarchy", "own_path")

    def __init__(self, hierarchy: Hierarchy, own_path: str, wanted: str, mark: str) -> None:
        self.hierarchy = hierarchy
        self.own_path = own_path
        self._wanted = wanted
        self._mark = mark

    @property
    def used_path(self) -> str:
        """Where a container has it."""
        return self.own_path

    def make(self) -> None:
        """Make it; in v2 its parent's controllers are delegated. HostError if the kernel refuses."""
        cgroupfs.make(self.hierarchy, self.own_path)
        self.hierarchy.mark(self.own_path, self._mark)

    def take(self) -> None:
        """Have it where a container has it; one that somebody has removed is made anew. FileExistsError if the wanted name is in use."""
        raise NotImplementedError

    def put_back(self) -> None:
        """Have it under the slot's name again. OSError if the kernel refuses."""

    def now(self) -> str | None:
        """Where it is; None if somebody has removed it."""
        return self.own_path

    def kill(self, path: str) -> None:
        """Kill all members. They may fork meanwhile, so the caller asks again."""
        for pid in self.hierarchy.processes(path):
            process = Process.open(pid) if pid else None  # 0: of another pid namespace
            if process is not None:
                with process:
                    if pid in self.hierarchy.processes(path):  # the pid could have become another's before we held it
                        process.kill()

    def is_empty(self, path: str) -> bool:
        """Whether neither it nor a child has members."""
        raise NotImplementedError


class _V1Part(_Part):
    """In v1: it becomes the container's cgroup by rename(2), and goes back by it.

    A crash may come between the renames in two hierarchies, so what is ours in each is found by looking: the slot's name if it is there, else the
    container's, if it carries the slot's mark. The mark is an extended attribute, which a cgroup keeps when it is renamed.
    """

    __slots__ = ()

    @property
    def used_path(self) -> str:
        """As asked for."""
        return self._wanted or self.own_path

    def take(self) -> None:
        """Rename it."""
        try:
            self.hierarchy.rename(self.own_path, self.used_path)
        except FileNotFoundError:
            self.make()
            self.hierarchy.rename(self.own_path, self.used_path)

    def put_back(self) -> None:
        """Rename it back, if it has another name."""
        now = self.now()
        if now == self.own_path:
            self.hierarchy.mark(now, self._mark)  # whoever made it may have been killed in between
        elif now is not None:
            self.hierarchy.rename(now, self.own_path)

    def now(self) -> str | None:
        """Under which of the two names."""
        if self.hierarchy.exists(self.own_path):
            return self.own_path
        return self.used_path if self.hierarchy.marked(self.used_path) == self._mark else None

    def is_empty(self, path: str) -> bool:
        """By its members."""
        return not self.hierarchy.processes(path)


class _V2Part(_Part):
    """In v2, which knows no rename: it keeps its name, and the container's record says which it is.

    Everything of a container is born in it (CLONE_INTO_CGROUP).
    """

    __slots__ = ()

    def take(self) -> None:
        """See that it is there."""
        if self._wanted and self.hierarchy.exists(self._wanted):
            raise FileExistsError(self._wanted)
        if not self.hierarchy.exists(self.own_path):
            self.make()

    def kill(self, path: str) -> None:
        """All at once, those of its children too (Linux 5.14); else one by one."""
        try:
            self.hierarchy.write(path, "cgroup.kill", "1")
        except FileNotFoundError:
            super().kill(path)

    def is_empty(self, path: str) -> bool:
        """By what the kernel says."""
        with suppress(OSError):
            return "populated 1" not in self.hierarchy.read(path, "cgroup.events").splitlines()
        return True


class Slot:
    """A slot, and the places that a container has it at: in v1 under the name it asked for, in v2 under the slot's own."""

    __slots__ = ("_parts", "number", "path", "places", "wanted")

    def __init__(self, number: int, parent: str, hierarchies: Sequence[Hierarchy], wanted: str = "") -> None:
        """``wanted`` is the path that the container asked for; without one nobody has the slot."""
        self.number = number
        self.path = paths.of_slot(parent, number)
        self.wanted = wanted
        self._parts = [_part(each, self.path, wanted, str(number)) for each in hierarchies]
        self.places = [Place(part.hierarchy, part.used_path) for part in self._parts]

    def make(self) -> None:
        """Make what is not there, parents too. HostError if the kernel refuses."""
        for part in self._parts:
            part.make()

    def is_whole(self) -> bool:
        """Whether it is there in every hierarchy, under its own name."""
        return all(part.hierarchy.exists(self.path) for part in self._parts)

    def take(self) -> None:
        """Have it at the container's places. FileExistsError if somebody else's cgroup is at one, HostError if the kernel refuses."""
        for part in self._parts:
            try:
                part.take()
            except FileExistsError:
                raise
            except OSError as error:
                raise HostError(f"rename cgroup {part.hierarchy.directory}{self.path}: {words(error)}") from error

    def put_back(self) -> None:
        """Have it under its own name. HostError if the kernel refuses."""
        for part in self._parts:
            try:
                part.put_back()
            except OSError as error:
                raise HostError(f"rename cgroup {part.hierarchy.directory}{part.used_path}: {words(error)}") from error

    def wait_empty(self, *, kill: bool = False) -> None:
        """Wait until it has no members; killing them, if asked, as often as it takes. HostError if it has when the time is over."""
        deadline = time.monotonic() + patience.seconds(KILL_TIMEOUT_S if kill else EMPTY_TIMEOUT_S)
        for part, path in self._now():
            while not part.is_empty(path):
                where = part.hierarchy.directory + path
                if time.monotonic() > deadline:
                    raise HostError(
                        f"give back cgroup {where}: processes remain in it", hint=f"see {where}/cgroup.procs"
                    )
                if kill:
                    part.kill(path)
                time.sleep(_POLL_S)

    def scrub(self, counters: dict[str, str]) -> str:
        """Make it as good as new; why it is not, or nothing. ``counters`` gets what cannot be reset."""
        from rundctl.engine.cgroups import scrub  # `create` does not need it

        for part, path in self._now():
            spoilt = scrub.scrub(part.hierarchy, path, counters)
            if spoilt:
                return f"{part.hierarchy.directory}{path}: {spoilt}"
        return ""

    def remove(self) -> None:
        """Remove it, whatever name it has. HostError if something stays in it."""
        from rundctl.engine.cgroups import scrub

        for part, path in self._now():
            scrub.remove_children(part.hierarchy, path)
            cgroupfs.remove(part.hierarchy, path)

    def _now(self) -> list[tuple[_Part, str]]:
        """Where it is now, where it is at all: after a crash partly under the one name, partly under the other."""
        found = ((part, part.now()) for part in self._parts)
        return [(part, path) for part, path in found if path is not None]


def _part(hierarchy: Hierarchy, own_path: str, wanted: str, mark: str) -> _Part:
    kind = _V2Part if hierarchy.is_v2 else _V1Part
    return kind(hierarchy, own_path, wanted, mark)


def numbers_in(hierarchies: Sequence[Hierarchy], parent: str) -> set[int]:
    """Numbers of the slots that the kernel has below a parent, under their own names."""
    names = {name.removeprefix(paths.SLOT_PREFIX) for each in hierarchies for name in each.children(parent)
             if name.startswith(paths.SLOT_PREFIX)}  # fmt: skip
    return {int(name) for name in names if name.isdigit()}


def name_of(hierarchies: Sequence[Hierarchy], parent: str, number: int) -> str:
    """The path that a container gave a slot in v1, found by the slot's mark; empty if it has its own name everywhere."""
    for hierarchy in hierarchies:
        for name in () if hierarchy.is_v2 else hierarchy.children(parent):
            path = f"{parent.rstrip('/')}/{name}"
            if path != paths.of_slot(parent, number) and hierarchy.marked(path) == str(number):
                return path
    return ""
