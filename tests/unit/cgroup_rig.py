"""Containers as the pool sees them: a lease, a record, cgroups. No VM: what is in a container's cgroups are pids that a test puts there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rundctl.engine.cgroups import cgroup_pool, kinds, upkeep
from rundctl.engine.cgroups.ownership import Pool
from rundctl.host import cgroupfs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rundctl.engine.cgroups.lease import Lease
    from rundctl.host.cgroupfs import Hierarchy

PARENT = f"/rundctl-contract-{os.getpid()}"
Facts = dict[str, Any]
_COUNTERS = ("pressure", "usage", "failcnt", ".peak")


def remove_all(hierarchies: Sequence[Hierarchy], path: str) -> None:
    for hierarchy in hierarchies:
        for name in hierarchy.children(path):
            remove_all([hierarchy], f"{path}/{name}")
        cgroupfs.remove(hierarchy, path)


class Rig:
    """One pool, on any hierarchies, with its files in a directory of the test."""

    def __init__(self, hierarchies: Sequence[Hierarchy], directory: Path, parent: str = PARENT) -> None:
        self.hierarchies = hierarchies
        self.kind = type(hierarchies[0])
        self.state = str(directory / "pool")
        self.root = directory / "root"
        self.parent = parent
        self.said: list[str] = []

    @property
    def pool(self) -> Pool:
        return Pool.of(self.parent, self.state)

    def fill(self, size: int) -> None:
        upkeep.fill(self.hierarchies, self.parent, size, self.said.append, self.state)

    def reclaim(self) -> None:
        upkeep.Upkeep(self.hierarchies, self.pool, self.said.append).reclaim()

    def drain(self) -> None:
        upkeep.drain(self.hierarchies, self.parent, self.said.append, self.state)

    def lease(self, name: str) -> Lease:
        return cgroup_pool.lease(self.hierarchies, f"{self.parent}/{name}", str(self.root / name), self.state)

    def claim(self, name: str, facts: Facts) -> None:
        (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / f"{name}/record.json.new").write_text(json.dumps({"id": name, "cgroups": facts}))
        (self.root / f"{name}/record.json.new").rename(self.root / f"{name}/record.json")

    def create(self, name: str) -> Lease:
        lease = self.lease(name)
        self.claim(name, lease.facts())
        lease.make(lambda facts: self.claim(name, facts))
        return lease

    def facts(self, name: str) -> Facts:
        return dict(json.loads((self.root / name / "record.json").read_text())["cgroups"])

    def give_back(self, name: str) -> str:
        return kinds.recorded(self.facts(name), self.kind).give_back()

    def forget(self, name: str) -> None:
        shutil.rmtree(self.root / name)

    def delete(self, name: str) -> str:
        outcome = self.give_back(name)
        self.forget(name)
        return outcome

    def places(self, name: str) -> list[cgroupfs.Place]:
        return kinds.recorded(self.facts(name), self.kind).places

    def cgroups(self) -> set[tuple[str, str]]:
        """(hierarchy, name) of every cgroup below the parent."""
        return {(each.directory, name) for each in self.hierarchies for name in each.children(self.parent)}

    def orphan(self, number: int, directory: str = "") -> None:
        """A lease whose creator is dead: pid 0 never is anybody's."""
        link = Path(self.pool.directory) / "leases" / str(number)
        link.unlink(missing_ok=True)
        link.symlink_to(f"0 1 2{directory}")

    def status(self) -> dict[str, object]:
        (found,) = upkeep.status(self.state)
        return found


def files(hierarchy: Hierarchy, path: str) -> dict[str, str]:
    """Settings of a cgroup: what can be read and written, but for counters."""
    where = Path(hierarchy.directory + path)
    found = {}
    for file in where.iterdir():
        if file.is_file() and file.stat().st_mode & 0o600 == 0o600 and not any(word in file.name for word in _COUNTERS):
            text = file.read_text().strip()
            # The kernel shows -1 as the largest limit, the fake as it was written; and hugetlb has a number, until somebody writes max.
            unlimited = text == "max" or (text == "-1" and file.name.startswith("memory."))
            found[file.name] = "9223372036854771712" if unlimited else text
    return found
