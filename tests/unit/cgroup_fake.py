"""A cgroup hierarchy made of plain directories: every call fails or succeeds as the kernel's, which tests/unit/test_cgroup_contract.py holds it to."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from rundctl.host.cgroupfs import Hierarchy

_COMMON_V1 = {"cgroup.procs": "", "notify_on_release": "0\n"}
_FILES_V1 = {
    "memory": {
        "memory.limit_in_bytes": "9223372036854771712\n",
        "memory.memsw.limit_in_bytes": "9223372036854771712\n",
        "memory.soft_limit_in_bytes": "9223372036854771712\n",
        "memory.swappiness": "60\n",
        "memory.usage_in_bytes": "0\n",
        "memory.max_usage_in_bytes": "0\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
        "memory.stat": "pgfault 0\n",
    },
    "cpu": {
        "cpu.shares": "1024\n",
        "cpu.cfs_quota_us": "-1\n",
        "cpu.cfs_period_us": "100000\n",
        "cpu.stat": "nr_throttled 0\n",
    },
    "cpuset": {"cpuset.cpus": "\n", "cpuset.mems": "\n"},
    "pids": {"pids.max": "max\n"},
    "devices": {"devices.list": "a *:* rwm\n"},
}
_FILES_V2 = {
    "cgroup.procs": "",
    "cgroup.type": "domain\n",
    "cgroup.controllers": "cpu memory pids\n",
    "cgroup.subtree_control": "",
    "cgroup.events": "populated 0\nfrozen 0\n",
    "cpu.weight": "100\n",
    "cpu.max": "max 100000\n",
    "cpu.stat": "usage_usec 0\n",
    "memory.max": "max\n",
    "memory.current": "0\n",
    "memory.events": "oom 0\noom_kill 0\n",
    "pids.max": "max\n",
}


class FakeHierarchy(Hierarchy):
    """Files come and go with their cgroup; members are the pids that a test writes into ``cgroup.procs``."""

    def mkdir(self, path: str) -> None:
        super().mkdir(path)
        self.populate(path)

    def rmdir(self, path: str) -> None:
        where = Path(self.directory + path)
        if not where.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(where))
        if (where / "cgroup.procs").read_text().strip() or self.children(path):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(where))
        shutil.rmtree(where)

    def rename(self, path: str, to: str) -> None:
        if self.is_v2:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)
        if not self.exists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if os.path.dirname(path) != os.path.dirname(to):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        if self.exists(to):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), to)
        super().rename(path, to)

    def write(self, path: str, name: str, text: str) -> None:
        if name == "cgroup.kill":
            (Path(self.directory + path) / "cgroup.procs").write_text("")
            self.set_members(path)
            return
        super().write(path, name, text)

    def populate(self, path: str) -> None:
        files = dict(_FILES_V2) if self.is_v2 else dict(_COMMON_V1)
        for controller in () if self.is_v2 else self.controllers:
            files |= _FILES_V1.get(controller, {})
        for name, text in files.items():
            (Path(self.directory + path) / name).write_text(text)

    def set_members(self, path: str, *pids: int) -> None:
        where = Path(self.directory + path)
        (where / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
        if self.is_v2:
            (where / "cgroup.events").write_text(f"populated {int(bool(pids))}\nfrozen 0\n")


def tree(
    directory: Path, *, v1: tuple[str, ...] = ("cpu,cpuacct", "cpuset", "memory", "pids", "devices"), v2: bool = True
) -> list[FakeHierarchy]:
    """A hybrid host by default: co-mounted and single v1 hierarchies, and v2 beside them."""
    found = [FakeHierarchy(str(directory / names), frozenset(names.split(",")), is_v2=False) for names in v1]
    if v2:
        found.append(FakeHierarchy(str(directory / "unified"), frozenset(), is_v2=True))
    for hierarchy in found:
        os.makedirs(hierarchy.directory)
        hierarchy.populate("")
        if "cpuset" in hierarchy.controllers:
            hierarchy.write("", "cpuset.cpus", "0-1\n")
            hierarchy.write("", "cpuset.mems", "0\n")
    return found
