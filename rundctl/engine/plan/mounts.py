"""Compile ``mounts``: options by runc's table, binds of volumes, and the file systems of the guest's kernel. Pure."""

from __future__ import annotations

from rundctl.guest import ops
from rundctl.lean import path as paths
from rundctl.oci.linux import (
    MOUNT_OPTIONS,
    MS_BIND,
    MS_RDONLY,
    MS_REC,
    MS_SHARED,
    MS_SLAVE,
    PROPAGATIONS,
    RECURSIVE_OPTIONS,
    REFUSED_OPTIONS,
)
from rundctl.oci.support import invalid, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from rundctl.oci.bundle import Bundle

# What may be mounted inside /proc: files that a tool such as lxcfs replaces (runc's list). Anything else could fool
# who trusts procfs.
_PROC_FILES = frozenset(
    f"/proc/{name}"
    for name in [
        "cpuinfo",
        "diskstats",
        "meminfo",
        "stat",
        "swaps",
        "uptime",
        "loadavg",
        "slabinfo",
        "net/dev",
        "sys/kernel/ns_last_pid",
        "sys/crypto/fips_enabled",
    ]
)


class Options:
    """A mount's options, sorted: flags of mount(2) set and cleared, the same recursively, propagation changes, data."""

    __slots__ = ("cleared", "copy_up", "data", "flags", "propagation", "recursive_cleared", "recursive_flags")

    def __init__(self) -> None:
        self.flags = 0
        self.cleared = 0
        self.recursive_flags = 0
        self.recursive_cleared = 0
        self.propagation: list[int] = []
        self.data: list[str] = []
        self.copy_up = False


class Mount:
    """One entry of ``mounts``: its place in the list, a clean absolute destination, its options."""

    __slots__ = ("destination", "fstype", "index", "options", "source")

    def __init__(self, index: int, destination: str, fstype: str, source: str, options: Options) -> None:
        self.index = index
        self.destination = destination
        self.fstype = fstype
        self.source = source
        self.options = options

    @property
    def is_bind(self) -> bool:
        """Whether it shows a path of the host."""
        return self.fstype == "bind" or bool(self.options.flags & MS_BIND)

    @property
    def is_recursive(self) -> bool:
        """Whether it shows what is mounted below its source, too."""
        return bool(self.options.flags & MS_REC)

    @property
    def is_read_only(self) -> bool:
        """Whether nothing may be written through it; then the host's side enforces it too."""
        return bool((self.options.flags | self.options.recursive_flags) & MS_RDONLY)


class Volume:
    """Where the guest sees a bind mount's source, and whether that is a file."""

    __slots__ = ("is_file", "path")

    def __init__(self, path: str, *, is_file: bool = False) -> None:
        self.path = path
        self.is_file = is_file


def parse_options(options: list[str]) -> Options:
    """Sort option names as runc does; names of no known flag are data for the file system. A later option wins."""
    result = Options()
    for option in options:
        if option in MOUNT_OPTIONS:
            on, off = MOUNT_OPTIONS[option]
            result.flags = result.flags & ~off | on
            result.cleared = result.cleared & ~on | off & ~on
        elif option in RECURSIVE_OPTIONS:
            on, off = RECURSIVE_OPTIONS[option]
            result.recursive_flags = result.recursive_flags & ~off | on
            result.recursive_cleared = result.recursive_cleared & ~on | off & ~on
        elif option in PROPAGATIONS:
            result.propagation.append(PROPAGATIONS[option])
        elif option in ("tmpcopyup", "notmpcopyup"):  # the second is podman's, which usually eats it itself
            result.copy_up = option == "tmpcopyup"
        elif option:
            result.data.append(option)
    return result


def parse(spec: dict[str, Any]) -> list[Mount]:
    """All entries of ``mounts``, checked; ConfigError names the entry."""
    return [_parse(index, entry) for index, entry in enumerate(spec.get("mounts", ()))]


def binds(bundle: Bundle) -> list[Mount]:
    """The bind mounts, their sources as absolute paths of the host (a relative one counts from the bundle)."""
    found = [mount for mount in parse(bundle.spec) if mount.is_bind]
    for mount in found:
        mount.source = paths.join(bundle.path, mount.source)
    return found


def _parse(index: int, entry: dict[str, Any]) -> Mount:
    where = f"mounts[{index}]"
    names = entry.get("options", [])
    for name in names:
        if name in REFUSED_OPTIONS:
            raise refused(f"{where}.options", f"{name}: {REFUSED_OPTIONS[name]}")
    # Lexically, as runc does; a link in the image is resolved by the agent, and never leads out of the root.
    destination = paths.normpath("/" + entry["destination"].lstrip("/"))
    mount = Mount(index, destination, entry.get("type", ""), entry.get("source", ""), parse_options(names))
    _check_destination(mount, where)
    _check_source(mount, where)
    if mount.options.copy_up and mount.fstype != "tmpfs":
        raise invalid(f"{where}.options", "tmpcopyup is for tmpfs only")
    return mount


def _check_destination(mount: Mount, where: str) -> None:
    if mount.destination == "/":
        raise invalid(f"{where}.destination", "mounting into / is prohibited")
    inside_proc = mount.destination == "/proc" or mount.destination.startswith("/proc/")
    if inside_proc and mount.fstype != "proc" and mount.destination not in _PROC_FILES:
        raise invalid(f"{where}.destination", f"{mount.destination} cannot be mounted because it is inside /proc")


def _check_source(mount: Mount, where: str) -> None:
    if mount.is_bind:
        if not mount.source:
            raise invalid(f"{where}.source", "expected the path to bind, but it is missing")
    elif not mount.fstype or mount.fstype == "none":
        raise invalid(f"{where}.type", "expected a file system, or the option bind")
    elif mount.fstype == "overlay":
        raise refused(f"{where}.type", "overlay: its directories are the host's; mount it on the host and bind it")
    elif mount.source.startswith("/dev/"):
        raise refused(f"{where}.source", f"{mount.source}: the host's block devices do not exist in the VM")


def compile_mounts(
    mounts: list[Mount],
    volumes: Mapping[int, Volume],
    shm: Mapping[int, int],
    cgroups: frozenset[int],
    ignored: list[str],
) -> list[ops.Op]:
    """Operations between ROOT and PIVOT.

    By index of ``mounts``: what the guest sees of the host; ``shm``, host tmpfs that one of the guest replaces, with their size in bytes; the
    binds of the host's ``cgroups``, which the container's own replace.
    """
    result: list[ops.Op] = []
    for mount in mounts:
        if mount.index in shm:
            made = _shm(mount, shm[mount.index])
        elif mount.index in cgroups:
            ignored.append(
                f"mounts[{mount.index}].source: the host's cgroups are not the VM's: the container sees its own"
            )
            made = _own_cgroups(mount, mounts)
        elif mount.is_bind:
            made = _bind(mount, volumes, ignored)
        else:
            made = _file_system(mount, is_writable=_shows_cgroups(mount, mounts, cgroups))
        if made:
            result += [*made, *(ops.propagation(mount.destination, flags) for flags in mount.options.propagation)]
    return result


def compile_late_readonly(mounts: list[Mount]) -> list[ops.Op]:
    """After PIVOT: what had to stay writable during set-up (mount points, device nodes) becomes read-only."""
    return [ops.remount(mount.destination, MS_RDONLY) for mount in mounts if _is_late(mount)]


def _is_late(mount: Mount) -> bool:
    return (
        not mount.is_bind
        and bool(mount.options.flags & MS_RDONLY)
        and (mount.fstype == "tmpfs" or mount.destination == "/dev")
    )


def _is_cgroup(mount: Mount) -> bool:
    return mount.fstype in ("cgroup", "cgroup2")


def _own_cgroups(mount: Mount, mounts: list[Mount]) -> list[ops.Op]:
    """The container's own in place of the host's, unless the bind is into a mount of them: of version 1's hierarchies the guest has none."""
    earlier = [
        other for other in mounts[: mount.index] if _is_cgroup(other) and is_below(mount.destination, other.destination)
    ]
    if earlier:
        return []
    return [ops.mount("cgroup2", mount.destination, "cgroup2", mount.options.flags & ~(MS_BIND | MS_REC))]


def _shows_cgroups(mount: Mount, mounts: list[Mount], cgroups: frozenset[int]) -> bool:
    """Whether a bind of the host's cgroups into it wants to write: what ``podman --systemd`` does on hosts with version 1."""
    return _is_cgroup(mount) and any(
        not mounts[index].is_read_only and is_below(mounts[index].destination, mount.destination) for index in cgroups
    )


def is_below(path: str, directory: str) -> bool:
    """Whether a clean path is a directory, or in it."""
    return path == directory or path.startswith(f"{directory.rstrip('/')}/")


def _file_system(mount: Mount, *, is_writable: bool = False) -> list[ops.Op]:
    """mount(2), and what can only be set afterwards."""
    options = mount.options
    is_cgroup = _is_cgroup(mount)  # the guest has version 2 alone; version 1's options mean nothing to it
    fstype = "cgroup2" if is_cgroup else mount.fstype
    data = "" if is_cgroup else ",".join(options.data)
    flags = options.flags & ~MS_RDONLY if is_writable or _is_late(mount) else options.flags
    source = mount.source or fstype
    # As runc: these are trusted by their paths, so an image's link must not lead them elsewhere (CVE-2023-27561).
    no_link = fstype in ("proc", "sysfs")
    made = ops.mount(source, mount.destination, fstype, flags, data, copy_up=options.copy_up, no_link=no_link)
    return [made, *_recursive(mount)]


def _shm(mount: Mount, size: int) -> list[ops.Op]:
    """A tmpfs of the guest in place of one of the host: shared memory is memory of one kernel."""
    flags = mount.options.flags & ~(MS_BIND | MS_REC)
    return [ops.mount("shm", mount.destination, "tmpfs", flags, f"mode=1777,size={size}" if size else "mode=1777")]


def _bind(mount: Mount, volumes: Mapping[int, Volume], ignored: list[str]) -> list[ops.Op]:
    where = f"mounts[{mount.index}]"
    if mount.index not in volumes:
        raise refused(f"{where}.source", f"{mount.source} is not shared with the VM")
    options = mount.options
    if options.data:
        ignored.append(f"{where}.options: ignored: {','.join(options.data)}: no data for a bind mount")
    for flag, name, what in (
        (MS_SLAVE, "slave", "the host do not appear in the VM"),
        (MS_SHARED, "shared", "the VM do not appear on the host"),
    ):
        if any(flags & flag for flags in options.propagation):
            ignored.append(f"{where}.options: {name}: later mounts of {what}")
    volume = volumes[mount.index]
    made = ops.bind(volume.path, mount.destination, recursive=bool(options.flags & MS_REC), is_file=volume.is_file)
    flags = options.flags & ~(MS_BIND | MS_REC)
    result = [made]
    if flags or options.cleared & ~MS_RDONLY:  # a fresh bind is as writable as its source: rw alone asks for nothing
        result.append(ops.remount(mount.destination, flags, options.cleared))
    return result + _recursive(mount)


def _recursive(mount: Mount) -> list[ops.Op]:
    options = mount.options
    if not options.recursive_flags | options.recursive_cleared:
        return []
    return [ops.remount(mount.destination, options.recursive_flags, options.recursive_cleared, recursive=True)]
