r"""A rootfs that is an overlay mount, taken apart: the layers below, which never change, and the directory that takes the container's writes.

Read from mountinfo, where the kernel shows what it was given: ``lowerdir=a:b`` with ``\:`` for a colon in a name, or ``lowerdir+`` once
for each layer (since 6.5, verbatim), perhaps relative to what was the mounter's directory. What is not understood is not taken apart.
"""

from __future__ import annotations

from rundctl.errors import words
from rundctl.host import mountinfo
from rundctl.lean import os
from rundctl.lean.contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from rundctl.host.mountinfo import Mount

# What the merged view is made by; whoever merges the same layers must be told the same.
_MERGING = frozenset(("redirect_dir", "metacopy", "userxattr"))
# What says how the upper is written, or how inodes are numbered, or which label all files show: nothing that is in the layers.
_IRRELEVANT = frozenset(
    (
        *("rw", "ro", "sync", "dirsync", "lazytime", "mand", "seclabel", "context", "fscontext", "defcontext", "rootcontext"),
        *("index", "nfs_export", "uuid", "xino", "volatile", "fsync", "default_permissions"),
        *("override_creds", "nooverride_creds"),
    )
)  # fmt: skip
_DIRECTORIES = ("lowerdir", "lowerdir+", "upperdir", "workdir")


class Overlay:
    """An overlay mount's parts, as absolute real paths.

    ``lowers``: topmost first, as in ``lowerdir``. ``upper`` and ``work`` are None for a mount without an upper.
    ``merging``: the options (``name=value`` or ``name``) without which the layers, the upper among them, would not be read as the host reads them.
    """

    __slots__ = ("lowers", "merging", "upper", "work")

    def __init__(self, lowers: tuple[str, ...], upper: str | None, work: str | None, merging: tuple[str, ...]) -> None:
        self.lowers = lowers
        self.upper = upper
        self.work = work
        self.merging = merging


class _Not(Exception):  # noqa: N818 (an answer, no error)
    """Why a rootfs is not taken apart."""


def of_rootfs(path: str) -> tuple[Overlay | None, str]:
    """The parts of the overlay that is mounted exactly there; or None, and why not in words."""
    try:
        lines = mountinfo.read()
        mount = mountinfo.at(path, lines)
        if mount is None:
            return None, f"{path} is not a mount point"
        inside = mountinfo.below(mount.target, lines)
        if inside is not None:
            return None, f"something is mounted inside of it, at {inside}"
        overlay = of_mount(mount)
        _check_names(mount.target, overlay)
    except _Not as reason:
        return None, str(reason)
    except OSError as error:
        return None, f"{error.filename or path} {words(error)}"
    return overlay, ""


def is_of_an_image(lower: str) -> bool:
    """Whether a layer is in a container engine's store, where it never changes once it is complete; told by the path.

    containers/storage (podman, CRI-O) and Docker have ``overlay[2]/ID/diff``, containerd ``snapshots/ID/fs``. Other directories (``podman run
    --rootfs DIR:O``) are somebody's, who may change them at any time.
    """
    parts = lower.split("/")
    store, name = (parts[-3], parts[-1]) if len(parts) > 3 else ("", "")
    return (store in ("overlay", "overlay2") and name == "diff") or (store == "snapshots" and name == "fs")


def of_mount(mount: Mount) -> Overlay:
    """The parts of one mount; `_Not` says why it cannot be taken apart."""
    if mount.type != "overlay":
        raise _Not(f"{mount.target} is {mount.type}, not overlay")
    if mount.root != "/":
        raise _Not(f"{mount.target} is only a part of an overlay ({mount.root})")
    known = _MERGING | _IRRELEVANT | frozenset(_DIRECTORIES)
    strange = next((name for name, _ in mount.options if name not in known), None)
    if strange is not None:
        raise _Not(f"{mount.target} has the option {strange}, whose effect on the layers is not known")
    lowers, upper, work = _directories(mount)
    resolve = _resolver(mount.target, [*lowers, *(directory for directory in (upper, work) if directory)])
    shown = {name: value for name, value in mount.options if name in _MERGING}
    merging = (f"{name}={value}" if value else name for name, value in {**_defaults(), **shown}.items())
    return Overlay(
        tuple(resolve(lower) for lower in lowers),
        resolve(upper) if upper else None,
        resolve(work) if work else None,
        tuple(sorted(merging)),
    )


def _defaults(parameters: str = "/sys/module/overlay/parameters") -> dict[str, str]:
    """The merging options that are on unless said otherwise; mountinfo does not show what is as the module's parameters have it."""
    found: dict[str, str] = {}
    for name in ("metacopy", "redirect_dir"):
        with suppress(FileNotFoundError), open(f"{parameters}/{name}", encoding="utf-8") as file:
            if file.read(1) == "Y":
                found[name] = "on"
    return found


def _directories(mount: Mount) -> tuple[list[str], str | None, str | None]:
    """lowers, upper and work as they were given to mount(2)."""
    given = dict(mount.options)
    added = [value for name, value in mount.options if name == "lowerdir+"]
    lowers = list(split_lowers(given["lowerdir"])) if "lowerdir" in given else added
    if "" in lowers:
        raise _Not(f"{mount.target} has data-only layers")
    if not lowers:
        raise _Not(f"{mount.target} shows no lowerdir")
    upper, work = (_existing_form(given[name]) if name in given else None for name in ("upperdir", "workdir"))
    return lowers, upper, work


def split_lowers(text: str) -> Iterator[str]:
    r"""The directories of a ``lowerdir``: colons separate them, a backslash makes the next character an ordinary one. ``::`` gives an empty name."""
    name: list[str] = []
    characters = iter(text)
    for character in characters:
        if character == ":":
            yield "".join(name)
            name.clear()
        else:
            name.append(next(characters, "\\") if character == "\\" else character)
    yield "".join(name)


def _existing_form(text: str) -> str:
    """upperdir and workdir are shown with the backslashes that they were given with, which the kernel takes for escapes or, in some versions, not."""
    if "\\" not in text or os.path.exists(text):
        return text
    return ":".join(split_lowers(text))  # a colon is an ordinary character here


def _resolver(target: str, given: list[str]) -> _Resolver:
    """How paths become absolute. A relative one was meant from the mounter's directory, which the kernel does not tell.

    podman mounts from the parent of the containers' directories, above the mount point; containerd from the snapshots' common parent, above
    the upper. So it is that directory above one of them in which all the relative paths exist; if more than one will do, none is taken.
    """
    relative = [path for path in given if not path.startswith("/")]
    if not relative:
        return _Resolver("")
    starts = [target, *(path for path in given if path.startswith("/"))]
    found = {
        base
        for start in starts
        for base in _parents(start)
        if all(os.path.isdir(f"{base}/{path}") for path in relative)
    }
    if len(found) != 1:
        raise _Not(
            f"{target} has relative layers ({relative[0]}), and {len(found)} directories that they could start from"
        )
    return _Resolver(found.pop())


class _Resolver:
    """Absolute real path of a directory that may be relative to ``base``; OSError if there is none."""

    __slots__ = ("_base",)

    def __init__(self, base: str) -> None:
        self._base = base

    def __call__(self, path: str) -> str:
        fd = os.open(os.path.join(self._base, path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return os.readlink(f"/proc/self/fd/{fd}")  # a third of what os.path.realpath costs
        finally:
            os.close(fd)


def _parents(path: str) -> Iterator[str]:
    path = os.path.realpath(path)
    while path != "/":
        path = os.path.dirname(path)
        yield path


def _check_names(target: str, overlay: Overlay) -> None:
    """Each name in the merged root must be in one of the layers.

    A path in mountinfo may by now be another directory, or an empty one: podman mounts id-mapped layers at paths that it takes away again.
    """
    missing = set(os.listdir(target))
    for directory in (*([overlay.upper] if overlay.upper else []), *reversed(overlay.lowers)):
        if not missing:
            return
        missing.difference_update(os.listdir(directory))
    if missing:
        raise _Not(f"{target} has {min(missing)!r}, which none of the layers of its mount has")
