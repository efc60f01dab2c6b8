"""The end of a slot that goes back to no pool, and of a pool that was drained."""

from __future__ import annotations

from rundctl.engine.cgroups import paths
from rundctl.lean.contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from rundctl.engine.cgroups.ownership import Pool
    from rundctl.engine.cgroups.slot import Slot
    from rundctl.host.cgroupfs import Hierarchy


def slot(pool: Pool, ours: Slot) -> None:
    """Remove a slot whose lease is ours, and end the lease; with the last one of a drained pool the pool ends too. HostError if something stays in it."""
    pool.unhint(ours.number)
    ours.remove()
    pool.set_baseline(ours.number, {})
    with suppress(FileNotFoundError), pool.lock():
        pool.drop(ours.number)
        pool_if_over(pool, [place.hierarchy for place in ours.places])


def pool_if_over(pool: Pool, hierarchies: Sequence[Hierarchy]) -> None:
    """Under the pool's lock: if it was drained, and this was its last lease, remove the parents that were made for it and nobody uses, and forget it."""
    if pool.is_over():
        for hierarchy in hierarchies:
            for directory, path in reversed(pool.made()):
                if directory == hierarchy.directory:
                    with suppress(OSError):
                        hierarchy.rmdir(path)
            paths.leave(hierarchy, pool.parent)
        pool.forget()
