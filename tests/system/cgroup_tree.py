"""The host's whole cgroup tree as it is: names, and what can be set."""

from __future__ import annotations

import os
from pathlib import Path

from rundctl.host.cgroupfs import hierarchies, make

TOP = "/sys/fs/cgroup"
_NO_SETTINGS = (
    "procs",
    "tasks",
    "threads",
    "pressure",
    "usage",
    "failcnt",
    ".peak",
    "control",
    "kill",
    "reclaim",
    "force_empty",
    "reset",
)


def snapshot(below: str = "") -> dict[str, dict[str, str]]:
    """Settings by cgroup, for every one that is called ``below``, or lies in it; all without it. What goes away while this looks is none."""
    found = {}
    for directory, _, files in os.walk(TOP):
        if below and below not in directory.split("/"):
            continue
        settings = {
            file: _read(f"{directory}/{file}") for file in files if not any(word in file for word in _NO_SETTINGS)
        }
        if Path(directory).exists():
            found[directory] = {file: text for file, text in settings.items() if text is not None}
    return found


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text() if os.stat(path).st_mode & 0o200 else None
    except OSError:
        return None


def names(below: str) -> set[str]:
    """Directories of the cgroups of this name, and of all in them."""
    return {directory for directory, _, _ in os.walk(TOP) if below in directory.split("/")}


__all__ = ["hierarchies", "make", "names", "snapshot"]
