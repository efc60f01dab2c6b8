"""Which templates go: those that nothing can use, and on request those unused for long, or the least recently used beyond a size."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from rundctl.engine.template import builders, inputs, store
from rundctl.errors import HostError
from rundctl.host import memo
from rundctl.vmm import qemu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rundctl.engine.settings import Settings
    from rundctl.engine.template.store import Entry

_DAY_S = 86400
_FORGOTTEN_DAYS = 7
# What containers choose, by limits, volumes and where their root comes from: templates that differ in nothing else are all current.
_BY_CONTAINER = ("memory_mib", "vcpus", "root_device", "root_mib", "volumes")


class Limits:
    """What may stay; None is no limit."""

    __slots__ = ("everything", "max_size_mib", "unused_days")

    def __init__(
        self, *, unused_days: int | None = None, max_size_mib: int | None = None, everything: bool = False
    ) -> None:
        self.unused_days = unused_days
        self.max_size_mib = max_size_mib
        self.everything = everything


def prune(settings: Settings, limits: Limits) -> list[str]:
    """Remove templates; keys of those removed. Clones that run are not disturbed: the kernel keeps what they have mapped.

    One that is being built just now stays: it is somebody's current one.
    """
    if not os.path.isdir(store.root(settings.home)):
        return []
    with builders.Builders(settings.home, lambda _: None):
        doomed = _doomed(store.entries(settings.home), _current_family(settings), limits)
        return [key for key in doomed if builders.remove(settings.home, key)]


def forget(settings: Settings) -> None:
    """Remove what nothing can use and nothing has used for a week: what was before an upgrade goes by itself. Others' settings may still have use for it."""
    oldest_s = time.time() - _FORGOTTEN_DAYS * _DAY_S
    family = _current_family(settings)
    if family is None:
        return
    with builders.Builders(settings.home, lambda _: None):
        found = store.entries(settings.home)
        useless = set(_doomed(found, family, Limits()))
        for entry in found:
            if entry.key in useless and entry.used_s < oldest_s:
                with suppress(HostError):  # whoever built a template has it all the same
                    builders.remove(settings.home, entry.key)


def _doomed(entries: list[Entry], family: dict[str, Any] | None, limits: Limits) -> list[str]:
    """Keys to remove, in the order of the list."""
    if limits.everything:
        return [entry.key for entry in entries]
    kept = [entry for entry in entries if _is_usable(entry, family)]
    if limits.unused_days is not None:
        oldest = time.time() - limits.unused_days * _DAY_S
        kept = [entry for entry in kept if entry.used_s >= oldest]
    if limits.max_size_mib is not None:
        kept = _fitting(kept, limits.max_size_mib)
    names = {entry.key for entry in kept}
    return [entry.key for entry in entries if entry.key not in names]


def _is_usable(entry: Entry, family: dict[str, Any] | None) -> bool:
    if not entry.intact or family is None:
        return False
    shape = entry.manifest["shape"]
    if shape["root_device"] == qemu.DISK:  # has no upper layer, whatever the settings say of one
        shape = {**shape, "upper_mib": family["upper_mib"]}
    return _family(shape) == family


def _fitting(entries: list[Entry], max_size_mib: int) -> list[Entry]:
    kept: list[Entry] = []
    for entry in sorted(entries, key=lambda item: item.used_s, reverse=True):
        if sum(item.size_mib for item in kept) + entry.size_mib > max_size_mib:
            break
        kept.append(entry)
    return kept


def _current_family(settings: Settings) -> dict[str, Any] | None:
    """What the present kernel, agent, QEMU and host would be built into; None if that is not known, so nothing is of use."""
    known = inputs.known(settings, inputs.Request(), memo.of_home(settings.home))
    return None if known is None else _family(known[0].facts())


def _family(shape: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in shape.items() if name not in _BY_CONTAINER}
