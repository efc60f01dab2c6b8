"""Cgroup pool: make cgroups before anybody needs them. Each start leases one; it comes back as good as new.

Problem
    To make, configure and join a container's cgroups takes kernel locks. At 200 starts at once that was most of the time of a start.
Mechanism
    `rundctl pool fill` makes *slots*. A slot is a cgroup in every hierarchy, below the parent that containers will ask for (``linux.cgroupsPath``):
    the limits of a pod or a slice live there. Two files on disk belong to a slot:
    its *lease* is one symlink, exclusive and atomic, whose text names the container; its *hint* says that the slot is ready.
    1. A start takes lease and hint (`take_ready`) and writes the lease into its record.
    2. The kernel's cgroup follows (`PooledLease.make`). In v1 rename(2) gives it the requested name. v2 has no rename: it stays as it is.
    3. The launcher joins it before anything else exists. So shim, QEMU and all that they allocate are born inside.
    4. ``delete`` makes the slot as good as new and hints that it is ready (`give_back`). A slot that cannot be made so is removed, and a process in
       the background makes others.
    If no slot is free, cgroups are made on the spot: no start ever waits for a slot.
Cost
    A start pays for listdir, symlink, unlink, and one rename in each v1 hierarchy. On the spot it pays for one mkdir in each hierarchy. Either way the
    launcher moves itself once in each v1 hierarchy, beside the compilation of the plan. An idle host has only the cgroups that `pool fill` was
    asked for.
Invariants
    Whoever touches a slot holds its lease. So a slot has one owner at most. And it is never lost: docs/adr/0006-cgroup-pool.md tells what ``kill -9``
    leaves at each step, and who mends it.
    The requested parent is always honoured, and left in place as runc leaves it. Our own default parent goes with its last container.
    A container gets a slot without any setting, member or child of the one that had it before.
Measured by
    the stages ``cgroup`` and ``shim`` of ``--timings``; in them ``join`` and ``clone``, which the launcher does beside them; make bench-cgroup.

Beside it: `ownership` is leases and hints on disk; `slot` a slot as the kernel has it; `scrub` makes it as good as new; `retire` ends slots and pools;
`upkeep` and `refill` make more; `lease` and `kinds` say what other kinds of cgroups there are.
"""

from __future__ import annotations

from rundctl.engine.cgroups import ownership
from rundctl.engine.cgroups.lease import Lease, places
from rundctl.engine.cgroups.ownership import Pool
from rundctl.engine.cgroups.plain import PlainLease
from rundctl.engine.cgroups.slot import Slot
from rundctl.errors import words
from rundctl.host.cgroupfs import Hierarchy, Place
from rundctl.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rundctl.engine.cgroups.lease import Facts


def take_ready(pool: Pool, container_directory: str) -> tuple[int, str] | None:
    """Take a slot that is ready: its number and the lease's text, or None if no slot is ready. Any number of callers may do so at once."""
    numbers = pool.free()
    first = os.getpid() % len(numbers) if numbers else 0  # so that not all try the same one
    for number in numbers[first:] + numbers[:first]:
        text = pool.lease(number, container_directory)
        if text is None:
            continue  # somebody was faster
        if pool.unhint(number):
            return number, text
        pool.drop(number)  # the hint was stale: somebody had it, and changed it, in between
    return None


def give_back(pool: Pool, slot: Slot) -> str:
    """Put a slot back into its pool as good as new, or remove it. The lease is ours, and ends; the slot has no members.

    Returns why the slot was removed: nothing if it was not, or only because the pool has enough. HostError if neither works: the lease stays then.
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
    from rundctl.engine.cgroups import retire  # `create` does not need it

    retire.slot(pool, slot)
    return spoilt


class PooledLease(Lease):
    """A slot as a container has it."""

    __slots__ = ("_instead", "_pool", "_slot", "_text")
    kind = "pool"

    def __init__(self, pool: Pool, slot: Slot, text: str) -> None:
        """``text``: the lease's, by which slot and container know each other."""
        super().__init__(slot.places)
        self._pool = pool
        self._slot = slot
        self._text = text
        self._instead: PlainLease | None = None

    @classmethod
    def recorded(cls, facts: Facts, hierarchy: type[Hierarchy] = Hierarchy) -> Lease:
        """As `Lease.recorded`."""
        pool = Pool(facts["pool"])
        found = places(facts, hierarchy)
        wanted = next((place.path for place in found if not place.hierarchy.is_v2), "")
        return cls(pool, Slot(facts["slot"], pool.parent, [place.hierarchy for place in found], wanted), facts["lease"])

    def facts(self) -> Facts:
        """As `Lease.facts`, with pool, number and lease: the record that has this very text owns the slot."""
        if self._instead is not None:
            return self._instead.facts()
        return {**super().facts(), "pool": self._pool.directory, "slot": self._slot.number, "lease": self._text}

    def make(self, record: Callable[[Facts], None]) -> None:
        """Give the slot the container's name. If another cgroup has that name, the container joins it, as with runc, and the slot goes back."""
        try:
            self._slot.take()
        except FileExistsError:
            self._slot.put_back()
            path = self._slot.wanted
            self._instead = PlainLease(
                [Place(place.hierarchy, path) for place in self.places], f"there is a cgroup {path} already"
            )
            self.places = self._instead.places
            record(self.facts())
            self.let_go()
            self._instead.make(record)

    def let_go(self) -> None:
        """As `Lease.let_go`: return a slot that was not used."""
        self._return(kill=False)

    def give_back(self, *, unfinished: bool = False) -> str:
        """As `Lease.give_back`. Nobody else's processes are in a slot, so those of an unfinished create are killed."""
        return self._return(kill=unfinished) if self._pool.is_of_this_boot() else ""

    def baseline(self) -> dict[str, str]:
        """As `Lease.baseline`."""
        return self._pool.baseline(self._slot.number)

    def describe(self) -> str:
        """As `Lease.describe`."""
        return f"slot {self._slot.number} of the pool" if self._instead is None else self._instead.describe()

    def _return(self, *, kill: bool) -> str:
        """Return the slot if the lease still has our text. Otherwise it was returned before, and may be anybody's by now."""
        now = self._pool.text(self._slot.number)
        if now is None:
            self._return_unleased()
        elif now == self._text:
            self._slot.wait_empty(kill=kill)
            spoilt = give_back(self._pool, self._slot)
            return f"slot {self._slot.number} is {f'removed: {spoilt}' if spoilt else 'returned'}"
        return ""

    def _return_unleased(self) -> None:
        """A slot without a lease was returned before, and is free. Or somebody removed the pool's files, and only the kernel still has the slot."""
        pool, slot = self._pool, self._slot
        if not pool.exists():
            slot.remove()
        elif pool.lease(slot.number) is not None:
            if pool.unhint(slot.number):
                pool.hint(slot.number)
                pool.drop(slot.number)
            else:
                slot.wait_empty()
                give_back(pool, slot)


def lease(
    hierarchies: Sequence[Hierarchy], path: str, container_directory: str = "", state: str = ownership.STATE
) -> Lease:
    """Name a container's cgroups before they exist, so that the record can hold them: a slot of the parent's pool, or the path itself."""
    pool = Pool.of(os.path.dirname(path), state)
    try:
        taken = take_ready(pool, container_directory) if container_directory else None
    except OSError as error:  # a name too long, a full or read-only /run: a start does not need it
        return PlainLease([Place(each, path) for each in hierarchies], f"pool of {pool.parent}: {error.strerror}")
    if taken is None:
        why = f"the pool of {pool.parent} is empty" if pool.is_open() else f"{pool.parent} has no pool"
        return PlainLease([Place(each, path) for each in hierarchies], why)
    number, text = taken
    return PooledLease(pool, Slot(number, pool.parent, hierarchies, path), text)
