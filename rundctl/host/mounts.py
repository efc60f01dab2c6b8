"""Mounts, in three ways: mount(2); by descriptor, so that nobody sees one before it is complete; in a namespace for the length of a ``with`` block.

Cold: ctypes takes milliseconds to load.
"""

from __future__ import annotations

import ctypes
import errno

from rundctl.errors import HostError
from rundctl.host.mountinfo import ROOT_HINT, ROOT_IS_NO_MOUNT
from rundctl.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

# Flags of mount(2), linux/mount.h
MS_RDONLY = 1
_MS_REMOUNT = 1 << 5
_MS_NOSYMFOLLOW = 1 << 8
MS_NOATIME = 1 << 10
_MS_BIND = 1 << 12
_MS_REC = 1 << 14
_MS_SLAVE = 1 << 19
# Attributes of fsmount(2), linux/mount.h
NOSUID = 0x02
NODEV = 0x04
NOEXEC = 0x08
NOATIME = 0x10
_CLOEXEC = 1  # of fsopen and of fsmount
_SET_FLAG = 0
_SET_STRING = 1
_CREATE = 6
_FROM_DESCRIPTOR = 0x04
_AT_FDCWD = -100
_CLONE_NEWNS = 0x00020000  # linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str | None, flags: int = 0, data: str = "") -> None:
    """mount(2). OSError with the target as its file name."""
    names = (None if text is None else os.fsencode(text) for text in (source, target, kind))
    _call("mount", *names, ctypes.c_ulong(flags), os.fsencode(data), about=target)


def unmount(target: str) -> None:
    """umount2(2), without force: what was written is on its device then. OSError with the target as its file name, EBUSY while anybody uses it."""
    _call("umount2", os.fsencode(target), 0, about=target)


def fence(directory: str) -> None:
    """Mount a directory over itself, read-only, without what is mounted inside; no path that enters it is led on by a symlink. OSError as of `mount`."""
    mount(directory, directory, None, _MS_BIND)
    mount("none", directory, None, _MS_REMOUNT | _MS_BIND | MS_RDONLY | _MS_NOSYMFOLLOW)


def detached(kind: str, source: str, options: tuple[str, ...] = (), attributes: int = 0) -> int:
    """Mount a device nowhere (fsopen(2), fsmount(2)); the descriptor is the only way in, through /proc/self/fd, and its end is the mount's. OSError.

    ``options`` are the file system's own switches; ``attributes`` NOSUID, NODEV and so on.
    """
    context = _call("fsopen", kind.encode(), _CLOEXEC)
    try:
        _call("fsconfig", context, _SET_STRING, b"source", os.fsencode(source), 0)
        for option in options:
            _call("fsconfig", context, _SET_FLAG, option.encode(), None, 0)
        _call("fsconfig", context, _CREATE, None, None, 0)
        return _call("fsmount", context, _CLOEXEC, attributes)
    finally:
        os.close(context)


def attach(mounted: int, directory: str) -> None:
    """Put a detached mount over a directory, in this mount namespace and those it propagates to (move_mount(2)). OSError with the directory."""
    _call("move_mount", mounted, b"", _AT_FDCWD, os.fsencode(directory), _FROM_DESCRIPTOR, about=directory)


class PrivateMounts:
    """What is mounted inside the block is seen by this thread and by programs that it starts there, and is gone with the last of them.

    The kernel keeps that promise even if the process is killed. OSError if the host refuses (root is needed), HostError in a chroot that is no mount.
    Afterwards root and working directory are the caller's again: setns(2) goes to the namespace's root, which is not ours in a chroot.
    """

    __slots__ = ("_cwd", "_outside", "_root")

    def __enter__(self) -> Self:
        self._outside = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self._root = os.open("/", os.O_PATH | os.O_CLOEXEC)
        self._cwd = os.open(".", os.O_PATH | os.O_CLOEXEC)
        try:
            _call("unshare", _CLONE_NEWNS, about="unshare")
            _hold_nothing()
        except (OSError, HostError):
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            _call("setns", self._outside, _CLONE_NEWNS, about="setns")
            os.fchdir(self._root)
            os.chroot(".")
            os.fchdir(self._cwd)
        finally:
            for fd in (self._outside, self._root, self._cwd):
                os.close(fd)


def _hold_nothing() -> None:
    """Let the host's unmounts come through to this namespace, and no mount of it back."""
    try:
        mount("none", "/", None, _MS_REC | _MS_SLAVE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise HostError(ROOT_IS_NO_MOUNT, hint=ROOT_HINT) from error


def _call(name: str, *arguments: int | bytes | ctypes.c_ulong | None, about: str | None = None) -> int:
    """A function of the C library (glibc 2.36, Debian 12, has all of these). OSError with ``about`` as its file name."""
    result: int = getattr(_libc, name)(*arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), about)
    return result
