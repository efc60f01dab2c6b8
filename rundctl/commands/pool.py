"""``rundctl pool``: cgroups made ahead of time."""

from __future__ import annotations

import json

from rundctl.commands.declare import Flag, Options, Verb
from rundctl.commands.output import columns, write
from rundctl.errors import UsageError


def fill(options: Options) -> int:
    """Make a pool, or fill it up."""
    from rundctl.engine import settings
    from rundctl.engine.cgroups import paths, upkeep
    from rundctl.host import cgroupfs

    size = options.number("size") if options.text("size") else settings.load().pool_size
    if size == 0:
        raise UsageError("--size takes a number from 1 on, not 0", hint="rundctl pool drain ends a pool")
    parent = options.text("parent") or paths.DEFAULT_PARENT
    upkeep.fill(cgroupfs.hierarchies(), parent, size, options.debug)
    return 0


def status(options: Options) -> int:
    """One line a pool."""
    from rundctl.engine.cgroups import upkeep

    found = upkeep.status()
    if options.on("json"):
        write(json.dumps(found, indent=2) + "\n")
        return 0
    names = ("parent", "size", "free", "leased", "orphaned")
    rows = [(*(str(pool[name]) for name in names), "open" if pool["open"] else "drained") for pool in found]
    write(columns([(*(name.upper() for name in names), "STATE"), *rows]))
    return 0


def drain(options: Options) -> int:
    """End pools."""
    from rundctl.engine.cgroups import upkeep
    from rundctl.host import cgroupfs

    upkeep.drain(cgroupfs.hierarchies(), options.text("parent"), options.debug)
    return 0


_PARENT = "Cgroup that the pool's slots, and containers, are below"

VERB = Verb(
    "pool",
    "Make, show and end pools of cgroups made ahead of time.",
    verbs=(
        Verb(
            "pool fill",
            "Make a pool, or fill it up.",
            fill,
            flags=(
                Flag("--parent", f"{_PARENT} (default: /rundctl).", value="PATH"),
                Flag("--size", "How many slots shall be free (default: as configured, else 8).", value="N"),
            ),
        ),
        Verb("pool status", "Show the pools.", status, flags=(Flag("--json", "Print them as JSON."),)),
        Verb(
            "pool drain",
            "End pools: free slots are removed, leased ones with their containers.",
            drain,
            flags=(Flag("--parent", f"{_PARENT} (default: all pools).", value="PATH"),),
        ),
    ),
)
