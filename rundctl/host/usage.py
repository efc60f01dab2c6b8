"""What a process, its descendants and its cgroup cost this host (proc_pid_cgroup(5), cgroup-v1/cpuacct.rst, cgroup-v1/memory.rst, cgroup-v2.rst)."""

from __future__ import annotations

import psutil

from rundctl.host import cgroupfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_NS_PER_US = 1000
_NS_PER_S = 10**9


def of(pid: int, hierarchies: Sequence[cgroupfs.Hierarchy] | None = None) -> dict[str, Any]:
    """Nanoseconds of processor time and bytes of memory of the process' cgroups, and of it and each process below it."""
    found = cgroupfs.hierarchies() if hierarchies is None else hierarchies
    return {**of_cgroups(_paths(pid), found), "processes": processes(pid)}


def of_cgroups(paths: dict[str, str], hierarchies: Sequence[cgroupfs.Hierarchy]) -> dict[str, Any]:
    """``paths``: the cgroup by controller, v2's by an empty name. What the kernel does not tell is left out."""
    cpu: dict[str, int] = {}
    memory: dict[str, int] = {}
    for hierarchy in hierarchies:
        for controller in ("",) if hierarchy.is_v2 else hierarchy.controllers:
            if controller in paths:
                _add(hierarchy, paths[controller], controller, cpu, memory)
    return {"cpu": cpu, "memory": memory}


def _add(
    hierarchy: cgroupfs.Hierarchy, path: str, controller: str, cpu: dict[str, int], memory: dict[str, int]
) -> None:
    if controller == "cpuacct":
        _take(cpu, "total", _number(hierarchy, path, "cpuacct.usage"))
    elif controller == "memory":
        _take(memory, "usage", _number(hierarchy, path, "memory.usage_in_bytes"))
        _take(memory, "max", _number(hierarchy, path, "memory.max_usage_in_bytes"))
    elif controller == "" and "total" not in cpu:
        stat = dict(line.split(" ", 1) for line in _text(hierarchy, path, "cpu.stat").splitlines() if " " in line)
        _take(cpu, "total", int(stat["usage_usec"]) * _NS_PER_US if "usage_usec" in stat else None)
        _take(memory, "usage", _number(hierarchy, path, "memory.current"))
        _take(memory, "max", _number(hierarchy, path, "memory.peak"))


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


def _paths(pid: int) -> dict[str, str]:
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {controller: path for _, controllers, path in lines for controller in controllers.split(",")}


def _take(figures: dict[str, int], name: str, value: int | None) -> None:
    if value is not None:
        figures[name] = value


def _number(hierarchy: cgroupfs.Hierarchy, path: str, name: str) -> int | None:
    text = _text(hierarchy, path, name).strip()
    return int(text) if text.isdigit() else None


def _text(hierarchy: cgroupfs.Hierarchy, path: str, name: str) -> str:
    """Empty if there is no such file (any more)."""
    try:
        with open(f"{hierarchy.directory}{path}/{name}", encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""
