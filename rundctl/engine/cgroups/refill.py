"""Filling a pool up in the background of ``delete``: what a deletion does itself is to look whether it is needed."""

from __future__ import annotations

from rundctl.engine import background
from rundctl.engine.cgroups.ownership import STATE, Pool
from rundctl.errors import HostError
from rundctl.host import files
from rundctl.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from rundctl.engine.cgroups.lease import Facts

_PROGRAM = """
from rundctl.engine.cgroups import upkeep
upkeep.run_in_background(job)
"""


def after(facts: Facts, state: str = STATE, *, wanted: Callable[[], bool]) -> str:
    """Refill the pool that a container's cgroups came from, or could have, if it has fewer free slots than it shall have. What was done, for ``--debug``.

    ``wanted``: whether to; asked where there is something to fill, because a settings file takes longer to read than all else here. What it raises comes
    through, and nothing else does: the container is deleted all the same.
    """
    if facts["kind"] not in ("plain", "pool") or not facts["places"]:
        return ""
    pool = Pool.of(os.path.dirname(facts["places"][0][2]), state)
    try:
        size, free = pool.size(), len(pool.free())
        if free >= size or not wanted():
            return ""
        lock = files.try_lock(f"{pool.directory}/filler")
        if lock is None:
            return f"the pool of {pool.parent} is being filled already"
        try:
            background.start(_PROGRAM, {"pool": pool.directory, "lock": lock}, lock, f"{pool.directory}/log")
        finally:
            os.close(lock)
    except (HostError, OSError) as error:
        return f"the pool of {pool.parent} is not filled: {error}"
    return f"the pool of {pool.parent} is filled up: {free} of {size} are free"
