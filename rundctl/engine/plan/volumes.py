"""Bind mounts: host paths opened once, assembled by the shim in QEMU's mount namespace, seen in the guest below one directory."""

from __future__ import annotations

import _stat as stat
import errno

from rundctl.engine.plan import mounts as plan_mounts
from rundctl.engine.plan.mounts import Volume
from rundctl.errors import ConfigError, HostError, words
from rundctl.host import mountinfo, rlimits
from rundctl.lean import os
from rundctl.lean import path as paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.engine.plan.mounts import Mount
    from rundctl.lean.contextlib import ExitStack
    from rundctl.oci.bundle import Bundle

_GUEST_DIRECTORY = "/volumes"
_MORE_FILES = (
    "each bind mount takes a descriptor: a higher hard limit of open files for the caller, ulimit -H -n, LimitNOFILE="
)
_CGROUPS = "/sys/fs/cgroup"
_OTHERS = 200  # descriptors of a start that are not sources of binds, more than it needs


class Volumes:
    """The sources of all binds: ``arguments`` for the shim, ``guest`` paths, ``shm`` sizes (bytes) and ``cgroups`` for the compiler, by index of ``mounts``.

    ``live``: where the guest finds a directory of the rootfs that comes the same way, "" without.
    """

    __slots__ = ("_devices", "_trees", "arguments", "cgroups", "descriptors", "guest", "live", "shm")

    def __init__(self) -> None:
        self.arguments: list[str] = []
        self.descriptors: list[int] = []
        self.guest: dict[int, Volume] = {}
        self.shm: dict[int, int] = {}
        self.cgroups: set[int] = set()
        self.live = ""
        self._devices: set[int] = set()
        self._trees: list[str] = []

    @property
    def number(self) -> int:
        """Under which QEMU finds them, assembled; -1 if there are none. It is a source's own: who assembles them needs that no longer."""
        return self.descriptors[0] if self.descriptors else -1

    def span_file_systems(self) -> bool:
        """Whether their directories are on more than one file system, so that inode numbers are not enough to tell files apart."""
        table = mountinfo.read()
        return len(self._devices) > 1 or any(mountinfo.below(tree, table) for tree in self._trees)

    def add(self, fd: int, *, read_only: bool, is_file: bool = False, recursive: bool = False) -> str:
        """Have a source assembled, and if ``recursive`` what is mounted below it; its path in the guest."""
        kind = "file" if is_file else "tree" if recursive else "dir"
        source = os.readlink(f"/proc/self/fd/{fd}")
        name = paths.basename(source) or "root"  # of a bind, mountinfo tells the name of its source
        path = f"{_GUEST_DIRECTORY}/{len(self.descriptors)}/{name}"
        self.arguments += ["--volume", f"{fd},{'ro' if read_only else 'rw'},{kind},{name}"]
        self.descriptors.append(fd)
        if not is_file:
            self._devices.add(os.fstat(fd).st_dev)
        if recursive and not is_file:
            self._trees.append(source)
        return path

    def add_live(self, undo: ExitStack, path: str) -> None:
        """Have a directory of the rootfs assembled, read-only. HostError if it cannot be opened."""
        try:
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"open the layer {path}: {words(error)}") from error
        undo.callback(os.close, fd)
        self.live = self.add(fd, read_only=True)


def open_all(undo: ExitStack, bundle: Bundle) -> Volumes:
    """Open every bind's source.

    ConfigError names the one, or the rootfs, that cannot be shown to a VM, HostError tells that they are more than descriptors may be open.
    """
    volumes = Volumes()
    mounts = plan_mounts.binds(bundle)
    _make_room(undo, len(mounts))
    table = mountinfo.read()
    _check_rootfs(bundle.rootfs, table)
    try:
        for mount in mounts:
            _take(undo, volumes, mount, table)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise HostError(f"{len(mounts)} bind mounts: {words(error)}", hint=_MORE_FILES) from error
    return volumes


def _take(undo: ExitStack, volumes: Volumes, mount: Mount, table: list[bytes]) -> None:
    fd = _open(mount)
    undo.callback(os.close, fd)
    under = mountinfo.of(fd, table)
    if mount.destination == "/dev/shm" and _is_tmpfs(fd, under):  # noqa: S108 (a destination, not a temporary file)
        space = os.statvfs(mount.source)
        volumes.shm[mount.index] = space.f_blocks * space.f_frsize
        return
    is_file = not stat.S_ISDIR(os.fstat(fd).st_mode)
    if not is_file and _shows_cgroups(fd, under):
        volumes.cgroups.add(mount.index)
        return
    if under is not None:
        _check_source(f"config.json: mounts[{mount.index}].source: {mount.source}", fd, under)
    path = volumes.add(fd, read_only=mount.is_read_only, is_file=is_file, recursive=mount.is_recursive)
    volumes.guest[mount.index] = Volume(path, is_file=is_file)


def _make_room(undo: ExitStack, count: int) -> None:
    """Until the shim has them, which raises its own limit, and QEMU's."""
    if count:
        undo.enter_context(rlimits.room_for(count + _OTHERS))


def _open(mount: Mount) -> int:
    try:
        return os.open(mount.source, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        message = f"config.json: mounts[{mount.index}].source: {mount.source}: {words(error)}"
        if error.errno == errno.EMFILE:
            raise
        if error.errno == errno.ENFILE:
            raise HostError(message, hint="fs.file-max of the host") from error
        raise ConfigError(message, hint="a bind mount's source must exist on the host") from error


def _is_tmpfs(fd: int, under: mountinfo.Mount | None) -> bool:
    """Whether a tmpfs is mounted exactly there."""
    return under is not None and under.type == "tmpfs" and under.target == _path(fd)


def _shows_cgroups(fd: int, under: mountinfo.Mount | None) -> bool:
    """Whether it is a directory of this host's cgroups, or the one that holds their hierarchies."""
    is_cgroup = under is not None and under.type in ("cgroup", "cgroup2")
    return is_cgroup or plan_mounts.is_below(_path(fd), _CGROUPS)


def _path(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def _check_rootfs(path: str, table: list[bytes]) -> None:
    where = f"config.json: root.path: {path}"
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{where}: {words(error)}") from error
    try:
        under = mountinfo.of(fd, table)
    finally:
        os.close(fd)
    if under is None:
        return
    if under.type == "proc":
        raise ConfigError(f"{where}: a procfs cannot be a root file system")
    _check_bindable(where, under)


def _check_source(where: str, fd: int, under: mountinfo.Mount) -> None:
    """The shim sees to all else that concerns a procfs: one that is whole is shown without processes (native/shim/procfs.c)."""
    if under.type == "proc":
        inside = paths.normpath(f"{under.root}/{paths.relpath(_path(fd), under.target)}").strip("/").split("/")[0]
        if inside.isdigit() or inside in ("self", "thread-self"):
            message = f"{where}: shows a process of the host; QEMU serves it, and may read more than the container may"
            raise ConfigError(message, hint="bind /proc itself (it shows no processes), or files such as /proc/stat")
    _check_bindable(where, under)


def _check_bindable(where: str, under: mountinfo.Mount) -> None:
    if under.unbindable:
        message = f"{where}: is on the unbindable mount {under.target}, which cannot be copied for the VM"
        raise ConfigError(message, hint=f"mount --make-private {under.target}")
