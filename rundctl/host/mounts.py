"""Mounts by descriptor (fsopen(2), fsmount(2), move_mount(2)): a file system that nobody sees before it is complete, and that goes with its maker."""

from __future__ import annotations

import ctypes
import os

# linux/mount.h
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


def detached(kind: str, source: str, options: tuple[str, ...] = (), attributes: int = 0) -> int:
    """Mount a device nowhere; the descriptor is the only way in, through /proc/self/fd, and its end is the mount's. OSError.

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


def attach(mount: int, directory: str) -> None:
    """Put a detached mount over a directory, in this mount namespace and those it propagates to. OSError."""
    _call("move_mount", mount, b"", _AT_FDCWD, os.fsencode(directory), _FROM_DESCRIPTOR)


def unmount(directory: str) -> None:
    """umount2(2), without force: OSError EBUSY while anybody has a file of it open in this namespace."""
    _call("umount2", os.fsencode(directory), 0)


def _call(name: str, *arguments: int | bytes | None) -> int:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)  # glibc 2.36: Debian 12
    result: int = function(*arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
