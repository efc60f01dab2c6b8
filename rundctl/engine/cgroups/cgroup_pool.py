"""The paper's third idea: a container starts in a cgroup that was made before.

Problem
    Making, configuring and joining a container's cgroups takes kernel locks: at 200 starts at once that was most of the time of a start.
Mechanism
    `rundctl pool fill` makes *slots*, cgroups in every hierarchy, below the parent that containers will ask for (``linux.cgroupsPath``: a pod's or a slice's
    limits live there). A start takes one: it puts its name on it, one symlink, exclusive and atomic (`cgroups.ownership`), its record says so, and the
    kernel's cgroup follows: by rename(2) to the requested name in v1, and in v2, which has no rename, as it is. The launcher joins it before anything
    else exists, so that shim, QEMU and all they allocate are born inside. ``delete`` makes it as good as new (`cgroups.scrub`) and returns it; a slot
    that cannot be is removed, and a process in the background makes others (`cgroups.fill`). Without one, or from an empty one, cgroups are made on the spot.
Cost
    A start pays for listdir, symlink, unlink and a rename a v1 hierarchy; on the spot, for a mkdir a hierarchy. Either way the launcher migrates itself once a
    v1 hierarchy, beside the compilation of the plan. An idle host has only the cgroups that `pool fill` was asked for.
Invariants
    The requested parent is always honoured, and left in place as runc leaves it; our own default parent goes with its last container.
    A slot has one owner at most, and is never lost: docs/adr/0006-cgroup-pool.md tells what ``kill -9`` leaves at each step, and who mends it.
    What a container is given has no setting, member or child of who had it before.
Measured by
    the stages ``cgroup`` and ``shim`` of ``--timings``, and there ``join`` and ``clone``, which the launcher does beside them.
"""

from __future__ import annotations

import os
from contextlib import suppress

from rundctl.engine.cgroups import ownership
from rundctl.engine.cgroups import slot as cgroup_slot
from rundctl.engine.cgroups.ownership import Pool
from rundctl.engine.cgroups.slot import PREFIX, Slot
from rundctl.errors import ConfigError, words
from rundctl.host import cgroupfs
from rundctl.host.cgroupfs import Hierarchy, Place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from rundctl.host.cgroup_settings import Limits

    Facts = dict[str, Any]

DEFAULT_PARENT = "/rundctl"


class Lease:
    """The cgroups of one container, made on the spot. Other kinds (slots of a pool, systemd's scopes) are subclasses with their own ``kind``.

    The life of one: named, and its `facts` recorded with the claim of the id; `make`; configured, and joined by the launcher; and by way of the record,
    which may be all that is left of who made it, `give_back`.
    """

    __slots__ = ("places", "why")
    kind = "plain"

    def __init__(self, places: list[Place], why: str = "") -> None:
        self.places = places
        self.why = why

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

    def let_go(self) -> None:
        """Undo the naming, if no record came to be: what `give_back` cannot know."""

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
        return f"made on the spot: {self.why}" if self.why else "made on the spot"


class PooledLease(Lease):
    """A slot of a pool; one made on the spot after all if somebody else has a cgroup of the requested name, which is then joined, as runc does."""

    __slots__ = ("_pool", "_slot", "_text", "kind", "path")

    def __init__(self, pool: Pool, slot: Slot, text: str, path: str) -> None:
        super().__init__(slot.places)
        self.kind = "pool"
        self.path = path
        self._pool = pool
        self._slot = slot
        self._text = text

    def facts(self) -> Facts:
        """As `Lease.facts`, with pool, number and lease: the record that has this very text owns the slot."""
        facts = super().facts()
        if self.kind == "pool":
            facts |= {"pool": self._pool.directory, "slot": self._slot.number, "lease": self._text}
        return facts

    def make(self, record: Callable[[Facts], None]) -> None:
        """Give the slot the container's name."""
        try:
            self._slot.take()
        except FileExistsError:
            self._slot.put_back()
            self.kind = Lease.kind
            self.why = f"there is a cgroup {self.path} already"
            self.places = [Place(place.hierarchy, self.path) for place in self.places]
            record(self.facts())
            self.let_go()
            super().make(record)

    def let_go(self) -> None:
        """Return a slot that was not used."""
        _return(self._pool, self._slot, self._text)

    def describe(self) -> str:
        """For ``--debug``."""
        return f"slot {self._slot.number} of the pool" if self.kind == "pool" else super().describe()


def path_of(cgroups_path: str, container_id: str, root_name: str = "") -> str:
    """The path below each hierarchy that ``linux.cgroupsPath`` means (runtime-spec, config-linux, "Cgroups Path").

    Without it the container's id, and for another root than the default one the root's name, which may have a container of the same id.
    ``slice:prefix:name`` means nothing but itself here, as in runc (with --systemd-cgroup: `cgroups.systemd`). ConfigError if the path leaves the hierarchy,
    is what all containers are in, or a slot, which is somebody's already, or will be.
    """
    if not cgroups_path:
        if container_id.startswith(PREFIX):
            raise ConfigError(
                f"container id {container_id}: {PREFIX}N are the slots of pools",
                hint="another id, or linux.cgroupsPath",
            )
        return f"{DEFAULT_PARENT}/{container_id}{'.' if root_name else ''}{root_name}"
    path = cgroups_path if cgroups_path.startswith("/") else f"{DEFAULT_PARENT}/{cgroups_path}"
    parts = [part for part in path.split("/") if part not in ("", ".")]
    normal = f"/{'/'.join(parts)}"
    if ".." in parts or not parts or "\0" in path:
        raise ConfigError(f"config.json: linux.cgroupsPath: {cgroups_path!r} leaves the cgroup hierarchy")
    if normal == DEFAULT_PARENT:
        raise ConfigError(f"config.json: linux.cgroupsPath: {cgroups_path!r}: other containers are in {DEFAULT_PARENT}")
    if any(part.startswith(PREFIX) for part in parts):
        raise ConfigError(f"config.json: linux.cgroupsPath: {cgroups_path!r}: {PREFIX}N are the slots of pools")
    return normal


def lease(
    hierarchies: Sequence[Hierarchy], path: str, container_directory: str = "", state: str = ownership.STATE
) -> Lease:
    """Name a container's cgroups, so that the record can hold them before they exist: a slot of the parent's pool, else the path itself."""
    pool = Pool.of(os.path.dirname(path), state)
    try:
        taken = pool.lease_ready(container_directory) if container_directory else None
    except OSError as error:  # a name too long, a full or read-only /run: a start does not need it
        return Lease([Place(each, path) for each in hierarchies], f"pool of {pool.parent}: {error.strerror}")
    if taken is None:
        why = f"the pool of {pool.parent} is empty" if pool.is_open() else f"{pool.parent} has no pool"
        return Lease([Place(each, path) for each in hierarchies], why)
    number, text = taken
    return PooledLease(pool, Slot(number, pool.parent, hierarchies, path), text, path)


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
        from rundctl.engine.cgroups import systemd

        systemd.limited(facts, limits)


def baseline(facts: Facts) -> dict[str, str]:
    """What the container's counters had before it, by file: those that cannot be reset, when it has a slot that others had; else none."""
    return Pool(facts["pool"]).baseline(facts["slot"]) if facts["kind"] == "pool" else {}


def give_back(facts: Facts, hierarchy: type[Hierarchy] = Hierarchy, *, unfinished: bool = False) -> str:
    """Give a container's cgroups back by its record's facts; what is given back already is fine. HostError if processes stay in one.

    With ``unfinished`` it is that of a create that was killed: what it has started ends by itself, but on a busy host may only be about to join. It gets more
    time, and in a slot, where nobody else's processes are, it is killed.

    What came of it, for ``--debug``. Called by who holds the container's lock, so never twice at once.
    """
    if facts["kind"] == "systemd":
        from rundctl.engine.cgroups import systemd

        systemd.give_back(facts, hierarchy)
        return ""
    found = places(facts, hierarchy)
    if facts["kind"] == "pool":
        pool = Pool(facts["pool"])
        wanted = next((place.path for place in found if not place.hierarchy.is_v2), "")
        slot = Slot(facts["slot"], pool.parent, [place.hierarchy for place in found], wanted)
        return _return(pool, slot, facts["lease"], kill=unfinished) if pool.is_of_this_boot() else ""
    for place in found:
        timeout_s = cgroup_slot.KILL_TIMEOUT_S if unfinished else cgroupfs.REMOVE_TIMEOUT_S
        cgroupfs.remove(place.hierarchy, place.path, timeout_s)
        _leave_parent(place.hierarchy, os.path.dirname(place.path))
    return ""


def _return(pool: Pool, slot: Slot, text: str, *, kill: bool = False) -> str:
    """Return a slot whose lease has this text. With another, or none, it was returned before, and may be anybody's by now."""
    now = pool.text(slot.number)
    if now is None:
        _return_unleased(pool, slot)
    elif now == text:
        slot.wait_empty(kill=kill)
        spoilt = finish(pool, slot)
        return f"slot {slot.number} is removed: {spoilt}" if spoilt else f"slot {slot.number} is returned"
    return ""


def _return_unleased(pool: Pool, slot: Slot) -> None:
    """A slot that is nobody's was returned before, and is free; or somebody has removed the pool's files, and only the kernel still has it."""
    if not pool.exists():
        slot.remove()
    elif pool.lease(slot.number) is not None:
        if pool.unhint(slot.number):
            pool.hint(slot.number)
            pool.drop(slot.number)
        else:
            slot.wait_empty()
            finish(pool, slot)


def finish(pool: Pool, slot: Slot) -> str:
    """Put a slot of ours, without members, back into its pool as good as new, or remove it; then end its lease. Why it was removed, if not for the pool's size.

    HostError if it can be neither; then the lease stays.
    """
    counters: dict[str, str] = {}
    spoilt = slot.scrub(counters)
    if not spoilt:
        slot.put_back()
        try:
            pool.set_baseline(slot.number, counters)
            if pool.offer(slot.number):
                return ""
        except OSError as error:  # a full /run
            spoilt = f"{pool.directory}: {words(error)}"
    pool.unhint(slot.number)
    slot.remove()
    pool.set_baseline(slot.number, {})
    with suppress(FileNotFoundError), pool.lock():
        pool.drop(slot.number)
        end(pool, [place.hierarchy for place in slot.places])
    return spoilt


def end(pool: Pool, hierarchies: Sequence[Hierarchy]) -> None:
    """Under the pool's lock: if it was drained, and this was its last lease, remove the parents that were made for it and nobody uses, and forget it."""
    if pool.is_over():
        for hierarchy in hierarchies:
            for directory, path in reversed(pool.made()):
                if directory == hierarchy.directory:
                    with suppress(OSError):
                        hierarchy.rmdir(path)
            _leave_parent(hierarchy, pool.parent)
        pool.forget()


def _leave_parent(hierarchy: Hierarchy, parent: str) -> None:
    """Remove our own default parent with its last container."""
    if parent == DEFAULT_PARENT:
        with suppress(OSError):  # other containers are in it
            hierarchy.rmdir(parent)
