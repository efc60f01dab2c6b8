"""What is stored as a directory with a ``manifest.json``: which files it was written for, whether they are still those, and when it was last used.

Templates, images and kernels are stored so. The manifest is written last: a directory without one is not there at all.
"""

from __future__ import annotations

from rundctl.lean import json, os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Identity = list[int]

NAME = "manifest.json"


def read(directory: str, expected: int) -> dict[str, Any] | None:
    """The manifest of what is stored in a directory, None if it is missing, damaged or not of the ``expected`` format."""
    try:
        with open(f"{directory}/{NAME}", "rb") as file:
            manifest = json.load(file)
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("format") == expected else None


def is_intact(directory: str, manifest: dict[str, Any], names: Iterable[str]) -> bool:
    """Whether the files are those that the manifest was written for: one stat each, nothing is read."""
    described = manifest.get("files", {})
    return all(
        described.get(name, {}).get("identity") == file_identity(f"{directory}/{name}") is not None for name in names
    )


def file_identity(path: str) -> Identity | None:
    """Inode, size, times of change (ns); not the device's number, which may differ after a reboot. None if there is no such file (stat(2))."""
    found = identity_here(path)
    return None if found is None else found[1:]


def identity_here(path: str) -> Identity | None:
    """The device's number, and `file_identity`: what changes when a file's contents do, or another disk is mounted. None if there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def used_s(directory: str) -> float:
    """Last use, seconds since the epoch: whoever uses what is stored touches the manifest. 0 if there is none."""
    try:
        return os.stat(f"{directory}/{NAME}").st_mtime
    except OSError:
        return 0


def size_mib(directory: str, names: Iterable[str]) -> int:
    """What the files take on disk, in MiB."""
    blocks = 0
    for name in names:
        try:
            blocks += os.stat(f"{directory}/{name}").st_blocks
        except OSError:
            continue
    return blocks * 512 >> 20
