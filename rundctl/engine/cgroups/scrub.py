"""Making a slot as good as new: settings to their defaults, counters to zero, and what cannot be reset told, or noted.

Settings and their defaults are the table of host/cgroup_files.py, which also those who write settings follow; here every one is read back.
"""

from __future__ import annotations

from rundctl.host import cgroup_files
from rundctl.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.host.cgroupfs import Hierarchy

# What is left charged to an ended container is some slab and the page cache that it was the first to touch. Reclaiming that by force would throw out
# the template's and images' pages, which all clones share, so a slot that keeps more than this is removed instead, as it would be without a pool.
CHARGES_MOST = 1 << 20

# Writing resets them: (controller, file, text); cgroup-v1/memory.rst, cpuacct.rst, blkio-controller.rst.
_RESET_V1 = (
    ("memory", "memory.failcnt", "0"),
    ("memory", "memory.max_usage_in_bytes", "0"),
    ("memory", "memory.memsw.failcnt", "0"),
    ("memory", "memory.memsw.max_usage_in_bytes", "0"),
    ("memory", "memory.kmem.failcnt", "0"),
    ("memory", "memory.kmem.max_usage_in_bytes", "0"),
    ("memory", "memory.kmem.tcp.failcnt", "0"),
    ("memory", "memory.kmem.tcp.max_usage_in_bytes", "0"),
    ("cpuacct", "cpuacct.usage", "0"),
    ("blkio", "blkio.reset_stats", "1"),
)
# Nothing resets them.
_KEPT_V1 = (("cpu", "cpu.stat"), ("memory", "memory.stat"), ("pids", "pids.events"), ("pids", "pids.events.local"))
_KEPT_V2 = (
    ("", "cpu.stat"),
    ("memory", "memory.events"),
    ("memory", "memory.peak"),
    ("memory", "memory.swap.events"),
    ("memory", "memory.swap.peak"),
    ("memory", "memory.stat"),
    ("io", "io.stat"),
    ("pids", "pids.events"),
    ("pids", "pids.peak"),
)


def scrub(hierarchy: Hierarchy, path: str, counters: dict[str, str]) -> str:
    """Make a cgroup without members as good as new. Why it cannot be, empty if it is; ``counters`` gets what could not be reset, by file.

    A cgroup that is gone is fine: it will be made anew. OSError only for what no other cgroup would have either.
    """
    if not hierarchy.exists(path):
        return ""
    if not remove_children(hierarchy, path):
        return "it has children that cannot be removed"
    spoilt = _spoilt(hierarchy, path)
    if spoilt:
        return spoilt
    try:
        cgroup_files.reset(hierarchy.directory + path, is_v2=hierarchy.is_v2)
        _reset_others(hierarchy, path)
    except OSError as error:
        return f"{error.filename}: {os.strerror(error.errno or 0).lower()}"
    unlike = cgroup_files.unlike_new(hierarchy.directory + path, is_v2=hierarchy.is_v2)
    if unlike:
        return f"{unlike[0]} does not accept its default"
    counters.update(_counters(hierarchy, path))
    return ""


def remove_children(hierarchy: Hierarchy, path: str) -> bool:
    """Remove what somebody made below a cgroup; False if something stays."""
    for name in hierarchy.children(path):
        child = f"{path}/{name}"
        if not remove_children(hierarchy, child):
            return False
        try:
            hierarchy.rmdir(child)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def _spoilt(hierarchy: Hierarchy, path: str) -> str:
    """Why settings and counters alone would not make it new."""
    usage, ooms = (
        ("memory.current", "memory.events") if hierarchy.is_v2 else ("memory.usage_in_bytes", "memory.oom_control")
    )
    seen = cgroup_files.numbers(hierarchy.look(path, ooms))
    if seen.get("oom_kill") or seen.get("oom_group_kill"):
        return "it saw an OOM"
    charged = int(hierarchy.look(path, usage) or 0)
    if charged > CHARGES_MOST:
        return f"it keeps {charged >> 10} KiB of charges"
    if (
        hierarchy.is_v2
        and hierarchy.look(path, "cgroup.type") == "threaded"
        and not _is_threaded(hierarchy, os.path.dirname(path))
    ):
        return "it was made threaded"
    if "devices" in hierarchy.controllers and not hierarchy.is_v2:
        return _reset_devices(hierarchy, path)
    return ""


def _is_threaded(hierarchy: Hierarchy, path: str) -> bool:
    return hierarchy.look(path, "cgroup.type") in ("threaded", "domain threaded")


def _reset_devices(hierarchy: Hierarchy, path: str) -> str:
    """A new cgroup has its parent's list; ``a`` copies it again, where the parent allows all (device_cgroup.c)."""
    wanted = hierarchy.look(os.path.dirname(path), "devices.list")
    if hierarchy.look(path, "devices.list") == wanted:
        return ""
    try:
        hierarchy.write(path, "devices.allow", "a")
    except OSError:
        return "its list of devices cannot be reset"
    return "" if hierarchy.look(path, "devices.list") == wanted else "its list of devices is not its parent's"


def _reset_others(hierarchy: Hierarchy, path: str) -> None:
    """Counters that can be, huge pages' limits, whose files are named by size, and in v2 what was enabled for children."""
    if hierarchy.is_v2:
        enabled = hierarchy.look(path, "cgroup.subtree_control").split()
        if enabled:
            hierarchy.write(path, "cgroup.subtree_control", " ".join(f"-{name}" for name in enabled))
    else:
        for controller, name, text in _RESET_V1:
            if controller in hierarchy.controllers and os.path.exists(f"{hierarchy.directory}{path}/{name}"):
                hierarchy.write(path, name, text)
    if hierarchy.is_v2 or "hugetlb" in hierarchy.controllers:
        _reset_hugetlb(hierarchy, path)


def _reset_hugetlb(hierarchy: Hierarchy, path: str) -> None:
    for name in os.listdir(hierarchy.directory + path):
        if not name.startswith("hugetlb."):
            continue
        if name.endswith(".limit_in_bytes"):
            if hierarchy.look(path, name) != cgroup_files.UNLIMITED:
                hierarchy.write(path, name, "-1")
        elif name.endswith((".failcnt", ".max_usage_in_bytes")):
            hierarchy.write(path, name, "0")
        elif name.endswith(".max") and hierarchy.look(path, name) not in ("max", cgroup_files.UNLIMITED):
            hierarchy.write(path, name, "max")


def _counters(hierarchy: Hierarchy, path: str) -> dict[str, str]:
    """Counters that nothing resets."""
    kept = _KEPT_V2 if hierarchy.is_v2 else _KEPT_V1
    names = [name for controller, name in kept if hierarchy.is_v2 or controller in hierarchy.controllers]
    texts = ((name, hierarchy.look(path, name)) for name in names)
    return {name: text for name, text in texts if text}
