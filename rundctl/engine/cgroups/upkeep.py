"""The pool's upkeep: fill, drain, reclaim, status. Cold: never on the path of a start.

All of it works on slots whose lease it has taken first, so it may run beside any number of starts and deletes, and be killed anywhere.
"""

from __future__ import annotations

import sys
import time

from rundctl.engine import background
from rundctl.engine.cgroups import cgroup_pool, ownership, paths, retire, slot
from rundctl.engine.cgroups.ownership import Pool
from rundctl.engine.cgroups.slot import Slot
from rundctl.errors import ConfigError, HostError, StateError, words
from rundctl.host import files
from rundctl.lean import os
from rundctl.lean.contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rundctl.host.cgroupfs import Hierarchy

_POLL_S = 0.005
_NAME_MAX = 255


class Upkeep:
    """One pool and the hierarchies its slots are in; ``say`` is told what was done."""

    def __init__(self, hierarchies: Sequence[Hierarchy], pool: Pool, say: Callable[[str], None]) -> None:
        self._hierarchies = hierarchies
        self._pool = pool
        self._say = say

    def fill(self, size: int) -> None:
        """Have ``size`` slots free. HostError if the kernel refuses to make one."""
        self._pool.open(size)
        with files.Lock(f"{self._pool.directory}/filler"):
            self.refill()

    def refill(self) -> None:
        """Have as many slots free as the pool's size says: reclaim what nobody owns, mend what somebody removed, make what is missing."""
        self.reclaim()
        for number in self._pool.free():
            self._mend(number)
        number = 0
        while len(self._pool.free()) < self._pool.size():
            self._make(number)
            number += 1

    def drain(self) -> None:
        """Remove all free slots, and end the pool: what is leased goes with its container."""
        self._pool.set_size(0)
        self.reclaim()
        while not self._drain_free():
            time.sleep(_POLL_S)  # somebody has just taken one, and will let go of it, or dies
            self.reclaim()
        with suppress(FileNotFoundError), self._pool.lock():
            retire.pool_if_over(self._pool, self._hierarchies)

    def _drain_free(self) -> bool:
        for number in self._pool.free():
            if self._pool.lease(number) is not None:
                self._pool.unhint(number)
                self._remove(number)
                self._say(f"slot {number} is removed")
        return self._pool.shut()

    def reclaim(self) -> None:
        """Take over the slots of the dead, and those that the kernel has and no file knows of. What cannot be now is left for the next time."""
        for number in self._pool.leased():
            self._reclaim_orphan(number)
        known = {*self._pool.leased(), *self._pool.free()}
        for number in slot.numbers_in(self._hierarchies, self._pool.parent) - known:
            if self._pool.lease(number) is not None:
                if self._pool.unhint(number):  # it was made just now
                    self._pool.hint(number)
                    self._pool.drop(number)
                else:
                    self._restore(number, "nobody knew of it")

    def _reclaim_orphan(self, number: int) -> None:
        ours = None
        with suppress(FileNotFoundError), self._pool.lock():
            ours = self._pool.take_over(number)
        if ours is not None:
            self._restore(number, "its owner is dead")

    def _restore(self, number: int, why: str) -> None:
        """Free a slot whose lease is ours of whatever is in it, and whatever name it has."""
        self._pool.unhint(number)
        parent = self._pool.parent
        found = Slot(number, parent, self._hierarchies, slot.name_of(self._hierarchies, parent, number))
        try:
            found.wait_empty(kill=True)
            spoilt = cgroup_pool.give_back(self._pool, found)
        except HostError as error:
            self._say(f"slot {number} is left: {error}")
            return
        self._say(f"slot {number} is reclaimed: {why}" + (f"; it was removed: {spoilt}" if spoilt else ""))

    def _mend(self, number: int) -> None:
        if self._slot(number).is_whole() or self._pool.lease(number) is None:
            return
        if self._pool.unhint(number):
            self._say(f"slot {number} is made again: somebody has removed it")
            self._finish_making(number)
        else:
            self._pool.drop(number)

    def _make(self, number: int) -> None:
        """Make a slot of this number, unless there is one."""
        if number in self._pool.free() or self._pool.lease(number) is None:
            return
        if self._pool.unhint(number):
            self._pool.hint(number)  # somebody returned it in between
            self._pool.drop(number)
        else:
            self._finish_making(number)

    def _finish_making(self, number: int) -> None:
        try:
            # Parents are noted before they are made: who is killed in between has made them all the same.
            for hierarchy in self._hierarchies:
                self._pool.add_made(hierarchy.directory, paths.missing(hierarchy, self._pool.parent))
            self._slot(number).make()
        except HostError:
            self._remove(number)
            raise
        self._pool.set_baseline(number, {})
        if not self._pool.offer(number):
            self._remove(number)

    def _remove(self, number: int) -> None:
        """Remove a slot whose lease is ours, and end the lease."""
        self._slot(number).remove()
        self._pool.set_baseline(number, {})
        self._pool.drop(number)

    def _slot(self, number: int) -> Slot:
        return Slot(number, self._pool.parent, self._hierarchies)


def fill(
    hierarchies: Sequence[Hierarchy],
    parent: str,
    size: int,
    say: Callable[[str], None],
    state: str = ownership.STATE,
) -> None:
    """Make a parent's pool, or fill it up. ConfigError for a parent that cannot be one, HostError if the kernel refuses."""
    if not hierarchies:
        raise HostError("no writable cgroup hierarchy is mounted", hint="rundctl doctor")
    _sweep(state)
    Upkeep(hierarchies, Pool.of(checked_parent(parent), state), say).fill(size)


def drain(
    hierarchies: Sequence[Hierarchy], parent: str, say: Callable[[str], None], state: str = ownership.STATE
) -> None:
    """End a parent's pool, or all if none is named. StateError if it has none."""
    if not parent:
        for pool in ownership.pools(state):
            Upkeep(hierarchies, pool, say).drain()
        _sweep(state)
        return
    pool = Pool.of(checked_parent(parent), state)
    if not pool.exists():
        raise StateError(f"{parent} has no pool", hint="rundctl pool status shows those that have")
    Upkeep(hierarchies, pool, say).drain()


def status(state: str = ownership.STATE) -> list[dict[str, object]]:
    """Of every pool: parent, size, whether it is open, and the slots that are free, leased, and orphaned (to be reclaimed)."""
    return [_status(pool) for pool in ownership.pools(state)]


def _status(pool: Pool) -> dict[str, object]:
    texts = [(number, pool.text(number)) for number in pool.leased()]
    orphans = {number for number, text in texts if text is not None and ownership.is_orphan(text)}
    return {
        "parent": pool.parent,
        "open": pool.is_open(),
        "size": pool.size(),
        "free": len(set(pool.free()) - {number for number, _ in texts}),
        "leased": len(texts) - len(orphans),
        "orphaned": len(orphans),
    }


def checked_parent(text: str) -> str:
    """A parent's path as containers will ask for it. ConfigError if it is none."""
    path = os.path.normpath(text)
    if not text.startswith("/") or ".." in text.split("/") or path.startswith("//"):
        raise ConfigError(
            f"pool of {text!r}: expected an absolute path below the hierarchies", hint="for example /rundctl"
        )
    if len(ownership.encode(path)) > _NAME_MAX:
        raise ConfigError(f"pool of {text!r}: the path is too long")
    return path


def _sweep(state: str) -> None:
    """Forget the pools of earlier boots: their cgroups went with them."""
    import shutil

    for directory in ownership.earlier_boots(state):
        shutil.rmtree(directory, ignore_errors=True)


def run_in_background(job: dict[str, object]) -> None:
    """What `cgroups.refill` starts: fill a pool up. The job's lock is inherited, so that there is one at a time."""
    from rundctl.host import cgroupfs

    background.keep_only(job)
    pool = Pool(str(job["pool"]))
    try:
        Upkeep(cgroupfs.hierarchies(), pool, _log).refill()
    except (HostError, OSError) as error:
        _log(f"pool of {pool.parent}: {words(error) if isinstance(error, OSError) else error}")


def _log(line: str) -> None:
    sys.stdout.write(f"{time.strftime('%FT%TZ', time.gmtime())} {line}\n")
