"""A container's figures in runc's JSON (`runc events --stats`, libcontainer's stats), out of the files of its cgroup in the guest (cgroup v2).

Pure. All of it comes from the guest and may be a lie: what is no number that fits 64 bits does not count, and nothing grows with what it says.
"""

from __future__ import annotations

from rundctl.host import cgroup_files
from rundctl.host.cgroup_files import number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

HUGE_PAGES = ("64KB", "2MB", "1GB")
FILES = (
    "cpu.stat", "cpuset.cpus.effective", "cpuset.mems.effective", "memory.current", "memory.max", "memory.peak", "memory.stat", "memory.events",
    "memory.swap.current", "memory.swap.max", "pids.current", "pids.max", "io.stat",
    *(f"hugetlb.{size}.{name}" for size in HUGE_PAGES for name in ("current", "events")),
)  # fmt: skip
UNLIMITED = cgroup_files.NUMBER_MAX  # as runc says "max"
_DEVICES_MAX = 256
_LIST_MAX = 4096  # members of a list of processors or nodes
_IO = {
    "rbytes": ("ioServiceBytesRecursive", "Read"),
    "wbytes": ("ioServiceBytesRecursive", "Write"),
    "rios": ("ioServicedRecursive", "Read"),
    "wios": ("ioServicedRecursive", "Write"),
}


def translate(files: Mapping[str, bytes]) -> dict[str, Any]:
    """What runc prints as ``data``; a file that is not there is a figure that is 0 or missing, as with runc."""
    texts = {name: content.decode("ascii", "replace") for name, content in files.items()}
    return {
        "cpu": _cpu(_numbers(texts, "cpu.stat")),
        "cpuset": _cpuset(texts),
        "memory": _memory(texts, _numbers(texts, "memory.stat")),
        "pids": _some(current=_number(texts, "pids.current"), limit=_limited(texts, "pids.max")),
        "blkio": _io(texts.get("io.stat", "")),
        "hugetlb": _hugetlb(texts),
        "intel_rdt": {},
        "network_interfaces": None,
    }


def oom_kills(files: Mapping[str, bytes]) -> int:
    """How many processes of the container its kernel has killed for want of memory."""
    return cgroup_files.numbers(files.get("memory.events", b"").decode("ascii", "replace")).get("oom_kill", 0)


def _cpu(stat: Mapping[str, int]) -> dict[str, Any]:
    usage = {
        **_some(total=_ns(stat, "usage_usec")),
        "kernel": _ns(stat, "system_usec"),
        "user": _ns(stat, "user_usec"),
    }
    throttling = _some(
        periods=stat.get("nr_periods", 0),
        throttledPeriods=stat.get("nr_throttled", 0),
        throttledTime=_ns(stat, "throttled_usec"),
    )
    return {"usage": usage, "throttling": throttling}


def _cpuset(files: Mapping[str, str]) -> dict[str, Any]:
    """The flags are those of v1's cpusets, which v2 has not: 0, as runc says on v2."""
    return {
        **_some(cpus=_members(files.get("cpuset.cpus.effective", ""))),
        "cpu_exclusive": 0,
        **_some(mems=_members(files.get("cpuset.mems.effective", ""))),
        "mem_hardwall": 0,
        "mem_exclusive": 0,
        "memory_migrate": 0,
        "memory_spread_page": 0,
        "memory_spread_slab": 0,
        "memory_pressure": 0,
        "sched_load_balance": 0,
        "sched_relax_domain_level": 0,
    }


def _memory(files: Mapping[str, str], stat: Mapping[str, int]) -> dict[str, Any]:
    usage, limit = _number(files, "memory.current"), _limit(files, "memory.max")
    swap, swap_limit = _number(files, "memory.swap.current"), _limit(files, "memory.swap.max", missing=0)
    both = min(limit + swap_limit, UNLIMITED)  # v1's, and runc's, count memory as well
    failures = _numbers(files, "memory.events").get("max", 0)
    return {
        **_some(cache=stat.get("file", 0)),
        "usage": {"limit": limit, **_some(usage=usage, max=_number(files, "memory.peak")), "failcnt": failures},
        "swap": {"limit": both, **_some(usage=min(usage + swap, UNLIMITED)), "failcnt": 0},
        "kernel": {"limit": 0, **_some(usage=stat.get("kernel", 0)), "failcnt": 0},
        "kernelTCP": {"limit": 0, **_some(usage=stat.get("sock", 0)), "failcnt": 0},
        **_some(raw=dict(sorted(stat.items()))),
    }


def _hugetlb(files: Mapping[str, str]) -> dict[str, Any]:
    return {
        size: {
            **_some(usage=_number(files, f"hugetlb.{size}.current")),
            "failcnt": _numbers(files, f"hugetlb.{size}.events").get("max", 0),
        }
        for size in HUGE_PAGES
        if f"hugetlb.{size}.current" in files
    }


def _io(text: str) -> dict[str, Any]:
    """``MAJOR:MINOR rbytes=1 wbytes=2 ...`` a line."""
    entries: dict[str, list[dict[str, Any]]] = {}
    for line in text.split("\n", _DEVICES_MAX)[:_DEVICES_MAX]:
        device, *words = line.split(" ")
        major, _, minor = device.partition(":")
        first, second = number(major), number(minor)
        if first is None or second is None:
            continue
        for word in words[: len(_IO) * 2]:
            key, _, text_value = word.partition("=")
            value = number(text_value)
            table, op = _IO.get(key, ("", ""))
            if table and value is not None:
                entry = {**_some(major=first, minor=second), "op": op, **_some(value=value)}
                entries.setdefault(table, []).append(entry)
    return entries


def _numbers(files: Mapping[str, str], name: str) -> dict[str, int]:
    return cgroup_files.numbers(files.get(name, ""))


def _members(text: str) -> list[int]:
    """``0-3,7`` as a list."""
    found: list[int] = []
    for part in text.strip().split(",")[:_LIST_MAX]:
        low, _, high = part.partition("-")
        first, last = number(low), number(high or low)
        if first is None or last is None or last - first >= _LIST_MAX:
            continue
        found += range(first, last + 1)
        if len(found) >= _LIST_MAX:  # not at the end: so many ranges are half a GiB
            break
    return found[:_LIST_MAX]


def _number(files: Mapping[str, str], name: str) -> int:
    return number(files.get(name, "")) or 0


def _limit(files: Mapping[str, str], name: str, missing: int = UNLIMITED) -> int:
    if name not in files:
        return missing
    value = number(files[name])
    return UNLIMITED if value is None else value


def _limited(files: Mapping[str, str], name: str) -> int:
    """0 for "max", as runc has it for processes."""
    return _number(files, name)


def _ns(stat: Mapping[str, int], key: str) -> int:
    return min(stat.get(key, 0) * 1000, UNLIMITED)


def _some(**values: Any) -> dict[str, Any]:
    """What Go's encoder prints of fields with ``omitempty``."""
    return {key: value for key, value in values.items() if value}
