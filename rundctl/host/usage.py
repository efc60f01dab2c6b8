"""What a process, its descendants and its cgroup cost this host (proc_pid_cgroup(5), cgroup-v1/cpuacct.rst, cgroup-v1/memory.rst, cgroup-v2.rst)."""

from __future__ import annotations

import psutil

from rundctl.host import cgroup_files, cgroupfs
from rundctl.host.cgroup_files import number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_NS_PER_US = 1000
_NS_PER_S = 10**9


def of(
    pid: int, hierarchies: Sequence[cgroupfs.Hierarchy] | None = None, before: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Nanoseconds of processor time and bytes of memory of the process' cgroups, and of it and each process below it.

    ``before``: the cgroups' files as they were when others had been in them, by name; what comes of that is not counted.
    """
    found = cgroupfs.hierarchies() if hierarchies is None else hierarchies
    return {**of_cgroups(cgroupfs.paths_of_process(pid), found, before or {}), "processes": processes(pid)}


def of_cgroups(
    paths: dict[str, str], hierarchies: Sequence[cgroupfs.Hierarchy], before: Mapping[str, str]
) -> dict[str, Any]:
    """``paths``: the cgroup by controller, v2's by an empty name. What the kernel does not tell is left out."""
    found: dict[str, dict[str, int]] = {"cpu": {}, "memory": {}}
    for hierarchy in hierarchies:
        for controller in () if hierarchy.is_v2 else hierarchy.controllers:
            if controller in paths:
                _add_v1(hierarchy, paths[controller], controller, found)
        if hierarchy.is_v2 and "" in paths:
            _add_v2(hierarchy, paths[""], before, found)
    return found


def _add_v1(hierarchy: cgroupfs.Hierarchy, path: str, controller: str, found: dict[str, dict[str, int]]) -> None:
    if controller == "cpuacct":
        _take(found["cpu"], "total", number(hierarchy.look(path, "cpuacct.usage")))
    elif controller == "memory":
        _take(found["memory"], "usage", number(hierarchy.look(path, "memory.usage_in_bytes")))
        _take(found["memory"], "max", number(hierarchy.look(path, "memory.max_usage_in_bytes")))


def _add_v2(
    hierarchy: cgroupfs.Hierarchy, path: str, before: Mapping[str, str], found: dict[str, dict[str, int]]
) -> None:
    """Its processor time goes on and its peak stays, where v1's are reset: a peak that is no higher than it was may be anybody's."""
    if "total" in found["cpu"]:
        return
    used, peak = _usage_ns(hierarchy.look(path, "cpu.stat")), number(hierarchy.look(path, "memory.peak"))
    if used is not None:
        found["cpu"]["total"] = max(0, used - (_usage_ns(before.get("cpu.stat", "")) or 0))
    _take(found["memory"], "usage", number(hierarchy.look(path, "memory.current")))
    if peak is not None and peak > int(before.get("memory.peak", -1)):
        found["memory"]["max"] = peak


def _usage_ns(stat: str) -> int | None:
    used = cgroup_files.numbers(stat).get("usage_usec")
    return None if used is None else used * _NS_PER_US


def processes(pid: int) -> list[dict[str, Any]]:
    """The process and those below it: pid, name, nanoseconds of processor time, bytes of RSS and PSS. Those that end meanwhile are left out."""
    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    return [told for process in family if (told := _process(process))]


def _process(process: psutil.Process) -> dict[str, Any] | None:
    try:
        with process.oneshot():
            times, memory = process.cpu_times(), process.memory_full_info()
            return {
                "pid": process.pid,
                "name": process.name(),
                "cpu": round((times.user + times.system) * _NS_PER_S),
                "rss": memory.rss,
                "pss": memory.pss,
            }
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return None


def _take(figures: dict[str, int], name: str, value: int | None) -> None:
    if value is not None:
        figures[name] = value
