"""The cache of images as a whole: what is there, whether it is whole, what goes. Cold."""

from __future__ import annotations

import fcntl
import os
import shutil
from typing import TYPE_CHECKING, Any

from rundctl.engine.rootfs.images import content as images
from rundctl.engine.rootfs.images.content import IMAGE, Content
from rundctl.errors import HostError
from rundctl.host import files, workspace
from rundctl.host import manifest as manifests

if TYPE_CHECKING:
    from rundctl.types import Progress


class Entry:
    """An image as `list` shows it. ``state``: "ok", "damaged" (it will be made anew), "stale" (its content is gone); ``used_s``: since the epoch."""

    __slots__ = ("in_use", "key", "manifest", "size_mib", "state", "used_s")

    def __init__(self, directory: str) -> None:
        self.key = os.path.basename(directory)
        manifest = manifests.read(directory, images.FORMAT)
        self.manifest: dict[str, Any] = manifest or {}
        self.size_mib = manifests.size_mib(directory, (IMAGE,))
        self.used_s = manifests.used_s(directory)
        self.in_use = _is_open(f"{directory}/{IMAGE}")
        self.state = _state(directory, manifest)

    @property
    def directories(self) -> list[str]:
        """The layers it was made of, topmost first."""
        return list(self.manifest.get("content", {}).get("directories", ()))

    @property
    def transport(self) -> str:
        """What it is an image for: "erofs" or "blk"; "?" of a damaged one."""
        if "content" not in self.manifest:
            return "?"
        return "erofs" if self.manifest["content"]["room_mib"] is None else "blk"

    def facts(self) -> dict[str, object]:
        """For JSON."""
        return {
            "key": self.key,
            "transport": self.transport,
            "state": self.state,
            "in_use": self.in_use,
            "size_mib": self.size_mib,
            "used_s": round(self.used_s),
            "build_s": self.manifest.get("build_s"),
            "content": self.manifest.get("content"),
        }


def entries(home: str) -> list[Entry]:
    """All images, by key."""
    root = images.root(home)
    try:
        names = sorted(
            name for name in os.listdir(root) if not name.startswith(".") and os.path.isdir(f"{root}/{name}")
        )
    except FileNotFoundError:
        return []
    return [Entry(f"{root}/{name}") for name in names]


def prune(home: str, *, max_mib: int | None = None, everything: bool = False) -> list[str]:
    """Remove what nothing can use (damaged, or of layers that are gone), what is over ``max_mib``, or all; the keys. VMs keep what they have open."""
    if not os.path.isdir(images.root(home)):
        return []
    workspace.sweep(images.root(home))
    with _lock(home):
        found = entries(home)
        doomed = [entry for entry in found if everything or entry.state != "ok"]
        if max_mib is not None:
            kept = [entry for entry in found if entry not in doomed]
            doomed += over(kept, max_mib)
        for entry in doomed:
            _remove(home, entry.key)
    return [entry.key for entry in doomed]


def evict(home: str, max_mib: int, *, keep: str) -> None:
    """Make room after a build: the least recently used go until all take no more than so many MiB."""
    with _lock(home):
        for entry in over(entries(home), max_mib, keep):
            _remove(home, entry.key)


def over(found: list[Entry], max_mib: int, keep: str = "") -> list[Entry]:
    """What has to go, least recently used first. Not what a VM has open: its room would not be free before the VM's end."""
    total = sum(entry.size_mib for entry in found)
    doomed = []
    for entry in sorted(found, key=lambda entry: entry.used_s):
        if total <= max_mib:
            break
        if entry.key != keep and not entry.in_use:
            doomed.append(entry)
            total -= entry.size_mib
    return doomed


def verify(home: str, progress: Progress) -> list[str]:
    """Read all images and remove those whose contents are no longer what was written, so that they are made anew; their keys."""
    damaged = []
    for entry in entries(home):
        progress(f"reading {entry.key}, {entry.size_mib} MiB")
        if not _is_as_written(home, entry):
            with _lock(home):
                _remove(home, entry.key)
            damaged.append(entry.key)
    return damaged


def _lock(home: str) -> files.Lock:
    return files.Lock(f"{images.root(home)}/.lock")


def _state(directory: str, manifest: dict[str, Any] | None) -> str:
    if manifest is None or not manifests.is_intact(directory, manifest, (IMAGE,)):
        return "damaged"
    try:
        return "ok" if Content.from_facts(manifest["content"]).key == manifest["key"] else "stale"
    except HostError:
        return "stale"


def _is_open(path: str) -> bool:
    """Whether somebody holds the lock that `rootfs.images.content.find_open` takes."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _is_as_written(home: str, entry: Entry) -> bool:
    if entry.state == "damaged":
        return False
    try:
        fd = os.open(f"{images.root(home)}/{entry.key}/{IMAGE}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True  # removed meanwhile
    try:
        written: str = entry.manifest["files"][IMAGE]["digest"]
        return files.content_digest(fd) == written
    except OSError:  # the disk cannot read it
        return False
    finally:
        os.close(fd)


def _remove(home: str, key: str) -> None:
    shutil.rmtree(f"{images.root(home)}/{key}", ignore_errors=True)
