"""The reflink store: XFS in a sparse file, ``HOME/storage.img``, mounted over ``HOME/templates``. For hosts whose file system cannot share extents. Cold.

Templates are all that it holds: a start clones its upper layer beside the template's own (`upper.clone`), and where that is costs nothing to find.
Invariants: the image has its name only once it is a file system; it is mounted only with all templates in it; nothing but `remove` removes it.
So a kill at any moment leaves nothing, or an image that is not mounted, which `init` and `mount` mend, and so does the `create` that finds no template
(after a reboot, or in a mount namespace that does not have it): while it is not mounted, the directory below it is empty.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rundctl.engine.template import builders, store
from rundctl.errors import HostError, cause, words
from rundctl.host import ficlone, files, loop, mounts, process, workspace
from rundctl.host import manifest as manifests
from rundctl.lean import json
from rundctl.lean.contextlib import contextmanager, suppress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rundctl.types import Progress


SIZE_LEAST = 512 << 20  # bytes; mkfs.xfs takes 300 MiB, of which 64 are its log
_SIZE_DEFAULT_MOST = 64 << 30  # bytes
_OPTIONS = (
    "discard",
    "ikeep",
)  # ikeep (xfs(5)): room for inodes, once made, is not given back with the last clone and made anew with the next
_ATTRIBUTES = mounts.NOSUID | mounts.NODEV | mounts.NOEXEC | mounts.NOATIME
_MANY = 8  # pids in an error message


@dataclass(frozen=True)
class Status:
    """A host's store. ``state``: ``none``, ``unmounted``, ``mounted``, or ``native`` where the file system itself shares extents; sizes in bytes."""

    state: str
    templates: str
    image: str
    size: int = 0
    on_host: int = 0
    free: int = 0
    device: str = ""
    is_direct: bool = False
    users: int = 0


def image_path(home: str) -> str:
    """Where the store's file is, if there is one."""
    return f"{home}/storage.img"


def is_mounted(home: str) -> bool:
    """Whether the templates' directory is the store, in this mount namespace."""
    return _mounted_device(home) is not None


def init(home: str, size: int | None, progress: Progress) -> Status:
    """Make the store, ``size`` bytes or half of what is free, and move the templates into it; mend an init that was killed.

    HostError if it would be of no use, is there already, or cannot be; nothing is left then.
    """
    image = image_path(home)
    with _changing(home, "make the reflink store"):
        if is_mounted(home):
            raise HostError(f"{image} is mounted already", hint="rundctl storage status")
        made = not os.path.exists(image)
        if made:
            whole = _size(home, size)
            _refuse_reflinks(store.root(home))
            _format(image, whole, progress)
        elif size not in (None, os.stat(image).st_size):
            text = f"{image} is there already, of {os.stat(image).st_size >> 20} MiB"
            raise HostError(text, hint="rundctl storage mount, or rundctl storage remove")
        try:
            _mount(home, progress)
        except BaseException:
            if made:
                files.unlink(image)
            raise
    return status(home)


def mount(home: str, progress: Progress) -> Status:
    """Mount the store that is there; templates that were built without it move into it. HostError if there is none, or it is mounted."""
    with _changing(home, "mount the reflink store"):
        _need_image(home)
        if is_mounted(home):
            raise HostError(f"{image_path(home)} is mounted already", hint="rundctl storage status")
        _mount(home, progress)
    return status(home)


def mount_if_there(home: str, progress: Progress) -> None:
    """Mount the store if there is one that is not mounted. HostError if that fails: templates built below it would be lost to the next mount."""
    if not os.path.exists(image_path(home)) or is_mounted(home):
        return
    with _changing(home, "mount the reflink store"):
        if os.path.exists(image_path(home)) and not is_mounted(home):
            _mount(home, progress)


def remove(home: str) -> list[str]:
    """Unmount and delete the store; keys of the templates that went with it. HostError while anything runs from it."""
    image = image_path(home)
    with _changing(home, "remove the reflink store"):
        _need_image(home)
        device = loop.find(image)
        users = _users(loop.number(device)) if device else []
        if users:
            pids = " ".join(map(str, users[:_MANY])) + (" ..." if len(users) > _MANY else "")
            raise HostError(f"{image} is in use by {len(users)} processes: {pids}", hint="rundctl list")
        lost = []
        if is_mounted(home):
            lost = [entry.key for entry in store.entries(home)]
            mounts.unmount(os.path.realpath(store.root(home)))
        os.unlink(image)
        return lost


def status(home: str) -> Status:
    """What is there. Changes nothing; HostError if it cannot be found out."""
    image, templates = image_path(home), store.root(home)
    with _told("examine the reflink store"):
        try:
            file = os.stat(image)
        except FileNotFoundError:
            there = next((path for path in (templates, home) if os.path.isdir(path)), None)
            native = there is not None and ficlone.works_in(there)
            return Status("native" if native else "none", templates, image)
        facts = templates, image, file.st_size, file.st_blocks * 512
        device = _mounted_device(home)
        if device is None:
            return Status("unmounted", *facts)
        room = os.statvfs(templates)
        users = len(_users(loop.number(device)))
        return Status("mounted", *facts, room.f_bavail * room.f_frsize, device, loop.is_direct(device), users)


@contextmanager
def _changing(home: str, what: str) -> Iterator[None]:
    """One change at a time; the host's refusals become one line."""
    with _told(what):
        os.makedirs(home, exist_ok=True)
        with files.Lock(f"{home}/.storage.lock"):
            yield


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(f"{what}: {cause(error)}") from error


def _need_image(home: str) -> None:
    if not os.path.exists(image_path(home)):
        raise HostError(f"there is no reflink store: {image_path(home)} is missing", hint="rundctl storage init")


def _mounted_device(home: str) -> str | None:
    """The loop device that is mounted over the templates, if the image is what is behind it."""
    try:
        device = loop.find(image_path(home))
        mounted = os.stat(store.root(home)).st_dev
    except FileNotFoundError:
        return None
    return device if device is not None and loop.number(device) == mounted else None


def _refuse_reflinks(templates: str) -> None:
    os.makedirs(templates, exist_ok=True)
    if ficlone.works_in(templates):
        raise HostError(f"the file system of {templates} shares extents already: a reflink store would gain nothing")


def _size(home: str, asked: int | None) -> int:
    """Bytes, whole MiB. The file is sparse, but what can never be had is not promised."""
    room = os.statvfs(home)
    free = room.f_bavail * room.f_frsize
    size = asked if asked is not None else min(free // 2, _SIZE_DEFAULT_MOST)
    if asked is not None and asked < SIZE_LEAST:
        raise HostError(f"a reflink store of {asked >> 20} MiB is too small: {SIZE_LEAST >> 20} MiB is the least")
    if not SIZE_LEAST <= size <= free:
        raise HostError(
            f"no space for a reflink store of {max(size, SIZE_LEAST) >> 20} MiB: {home} has {free >> 20} MiB free"
        )
    return size >> 20 << 20


def _format(image: str, size: int, progress: Progress) -> None:
    """Make the file system in a file that has no name yet, then name it."""
    progress(f"making a file system of {size >> 20} MiB")
    fd = files.nameless(os.path.dirname(image))
    try:
        os.ftruncate(fd, size)
        # K: no discard, there is nothing in a new file
        command = ["mkfs.xfs", "-q", "-f", "-K", "-m", "reflink=1", f"/proc/{os.getpid()}/fd/{fd}"]
        process.run(command, what="format the reflink store", hint="apt-get install xfsprogs")
        os.fsync(fd)
        # A directory's descriptor only makes Python use linkat(2), which follows the link: link(2) would not.
        os.link(f"/proc/self/fd/{fd}", image, src_dir_fd=fd, follow_symlinks=True)
        files.sync_directory(os.path.dirname(image))
    finally:
        os.close(fd)


def _mount(home: str, progress: Progress) -> None:
    """Mount the image where nobody sees it, move the templates into it, then put it over them."""
    image, root = image_path(home), store.root(home)
    store.make_root(home)
    with loop.Loop(image) as device:
        try:
            fd = mounts.detached("xfs", device.path, _OPTIONS, _ATTRIBUTES)
        except OSError as error:
            hint = "modprobe xfs; if the image is damaged, rundctl storage remove: templates are built anew"
            raise HostError(f"mount {image}: {words(error)}", hint=hint) from error
    try:
        inside = f"/proc/self/fd/{fd}"
        os.chmod(f"{inside}/.", 0o700)
        with builders.NoBuilders(home, progress):
            workspace.sweep(root)
            _move_templates(home, inside, progress)
            mounts.attach(fd, os.path.realpath(root))
    finally:
        os.close(fd)


def _move_templates(home: str, inside: str, progress: Progress) -> None:
    """All of them are copied before the first is removed. A damaged one, which would never be used, is told and left behind."""
    root = store.root(home)
    entries = store.entries(home)
    for entry in entries:
        source, target = f"{root}/{entry.key}", f"{inside}/{entry.key}"
        if not entry.intact or not _copy(source, target, progress):
            progress(f"template {entry.key} is damaged: the next create builds it anew")
    files.sync_directory(f"{inside}/.")
    for entry in entries:
        shutil.rmtree(f"{root}/{entry.key}")


def _copy(source: str, target: str, progress: Progress) -> bool:
    """Copy a template and note what its files are now. False if their contents are not those that were written."""
    manifest = manifests.read(source, store.FORMAT)
    if manifest is None:
        return False
    progress(f"moving template {manifest['key']}")
    temporary = f"{target}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    store.make_directories(temporary)
    try:
        for name in store.FILES:
            described = manifest["files"][name]
            if _copy_file(f"{source}/{name}", f"{temporary}/{name}") != described["digest"]:
                return False
            described["identity"] = manifests.file_identity(f"{temporary}/{name}")
        path = f"{temporary}/{manifests.NAME}"
        files.replace(path, json.dumps(manifest, indent=1).encode())
        used = os.stat(f"{source}/{manifests.NAME}")
        os.utime(path, ns=(used.st_atime_ns, used.st_mtime_ns))
        shutil.rmtree(target, ignore_errors=True)
        os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def _copy_file(source: str, target: str) -> str:
    """Copy data, holes and mode; the digest of what has arrived."""
    with open(source, "rb") as old, open(target, "xb+") as new:
        files.copy_sparse(old.fileno(), new.fileno())
        os.fchmod(new.fileno(), os.fstat(old.fileno()).st_mode & 0o777)
        os.fsync(new.fileno())
        return files.content_digest(new.fileno())


def _users(device: int) -> list[int]:
    """Pids of processes, in whatever mount namespace, with a file of this device open: every VM has its upper layer."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _has_open(name, device)]


def _has_open(pid: str, device: int) -> bool:
    with suppress(OSError):  # it has ended
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if os.stat(f"/proc/{pid}/fd/{name}").st_dev == device:
                    return True
    return False
