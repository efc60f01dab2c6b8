"""Where a QEMU's memory is: its proportional set size (smaps, proc(5)) by what it is for."""

from __future__ import annotations

import re
import subprocess

_HEADER = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \d+\s*(.*)")
_STACK_KIB = (8188, 8192)  # glibc's default thread stack, with or without its guard page

PARTS = (
    # name, what it counts
    ("translated code", "TCG's buffer; 0 with KVM"),
    ("guest, dirtied", "pages of the guest's memory that the clone wrote"),
    ("guest, shared", "its share of pages that are still the template's"),
    ("heap, anonymous", "malloc's arenas, tables, coroutines' stacks, small ROMs"),
    ("relocations, data", "pages of programs and libraries that were written: relocated addresses and variables"),
    ("files, shared", "its share of programs and libraries as they are on disk"),
    ("stacks", "of its threads"),
    ("shim", "all of the shim"),
)


def breakdown_kib(pid: int, memory: str) -> dict[str, int]:
    """PSS of a QEMU by part, KiB; ``memory``: end of the path of the guest's memory file."""
    parts = {name: 0 for name, _ in PARTS}
    previous_end, previous_guard = 0, False
    for region in _regions(pid):
        start, end, permissions, path = region["start"], region["end"], region["permissions"], region["path"]
        stacked = previous_guard and previous_end == start and (end - start) >> 10 in _STACK_KIB
        pss, anonymous = region["Pss"], region["Anonymous"]
        if path.endswith(memory):
            parts["guest, dirtied"] += anonymous
            parts["guest, shared"] += pss - anonymous
        elif not path and "w" in permissions and "x" in permissions:
            parts["translated code"] += pss
        elif path == "[stack]" or (not path and stacked):
            parts["stacks"] += pss
        elif not path or path.startswith("["):
            parts["heap, anonymous"] += pss
        else:
            parts["relocations, data"] += anonymous
            parts["files, shared"] += pss - anonymous
        previous_end, previous_guard = end, permissions.startswith("---")
    return parts


def pss_kib(pid: int) -> int:
    """PSS of a whole process, KiB."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Pss:"))


def mapped_mib(pid: int, path: str) -> float:
    """PSS of a process's mappings of a file, MiB."""
    return sum(region["Pss"] for region in _regions(pid) if region["path"] == path) / 1024


def cached_mib(path: str) -> float:
    """What of a file is in the host's page cache (fincore(1)), MiB."""
    argv = ["fincore", "--bytes", "--noheadings", "--output", "RES", path]
    return int(subprocess.run(argv, check=True, capture_output=True).stdout) / (1 << 20)


def _regions(pid: int) -> list[dict]:  # type: ignore[type-arg]  # numbers by name, one path, one set of permissions
    regions: list[dict] = []  # type: ignore[type-arg]
    with open(f"/proc/{pid}/smaps", encoding="utf-8") as file:
        for line in file:
            header = _HEADER.match(line)
            if header:
                start, end, permissions, path = header.groups()
                regions.append(
                    {"start": int(start, 16), "end": int(end, 16), "permissions": permissions, "path": path.strip()}
                )
            else:
                name, _, value = line.partition(":")
                if name in ("Pss", "Anonymous"):
                    regions[-1][name] = int(value.split()[0])
    return regions
