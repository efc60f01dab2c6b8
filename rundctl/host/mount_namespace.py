"""A mount namespace for the length of a ``with`` block, and mount(2) in it. Cold: ctypes takes milliseconds to load."""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

# linux/mount.h, linux/sched.h
MS_RDONLY = 1
_MS_REMOUNT = 1 << 5
_MS_NOSYMFOLLOW = 1 << 8
_MS_BIND = 1 << 12
_MS_REC = 1 << 14
_MS_SLAVE = 1 << 19
_CLONE_NEWNS = 0x00020000
_libc = ctypes.CDLL(None, use_errno=True)


class PrivateMounts:
    """What is mounted inside the block is seen by this thread and by programs that it starts there, and is gone with the last of them.

    The kernel keeps that promise even if the process is killed. OSError if the host refuses (root is needed).
    """

    __slots__ = ("_cwd", "_outside")

    def __enter__(self) -> Self:
        self._outside = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self._cwd = os.open(".", os.O_PATH | os.O_CLOEXEC)
        try:
            _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
            mount("none", "/", None, _MS_REC | _MS_SLAVE)  # what the host unmounts must not be held by us
        except OSError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            _checked(_libc.setns(self._outside, _CLONE_NEWNS), "setns")
            os.fchdir(self._cwd)  # setns(2) went to the root
        finally:
            os.close(self._outside)
            os.close(self._cwd)


def mount(source: str, target: str, kind: str | None, flags: int = 0, data: str = "") -> None:
    """mount(2). OSError with the target as its file name."""
    source_, target_, kind_ = (None if text is None else os.fsencode(text) for text in (source, target, kind))
    _checked(_libc.mount(source_, target_, kind_, ctypes.c_ulong(flags), os.fsencode(data)), target)


def fence(directory: str) -> None:
    """Mount a directory over itself, read-only, without what is mounted inside; no path that enters it is led on by a symlink. OSError as of `mount`."""
    mount(directory, directory, None, _MS_BIND)
    mount("none", directory, None, _MS_REMOUNT | _MS_BIND | MS_RDONLY | _MS_NOSYMFOLLOW)


def unmount(target: str) -> None:
    """umount(2): what was written is on its device then. OSError with the target as its file name."""
    _checked(_libc.umount2(os.fsencode(target), 0), target)


def _checked(answer: int, what: str) -> None:
    if answer != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
