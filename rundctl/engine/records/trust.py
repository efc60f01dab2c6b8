"""Whose files are believed: a record tells what runs as root (hooks), and which processes are killed.

Asked of descriptors, never of paths: what was looked at is what is read. Believed are files of root and of who calls, which nobody else can write.
"""

from __future__ import annotations

import _stat as stat
import errno

from rundctl.errors import HostError
from rundctl.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.lean.contextlib import ExitStack

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def directory(opened: ExitStack, name: str, above: int | None = None, path: str = "") -> int:
    """Open a directory, as ``opened``'s, and believe in it; one that is named within another (``above``) may be no link.

    HostError that names ``path`` if others could have put there what is in it; OSError if it cannot be opened.
    """
    flags = _DIRECTORY if above is None else _DIRECTORY | os.O_NOFOLLOW
    return _believed(opened, os.open(name, flags, dir_fd=above), path or name)


def file(opened: ExitStack, name: str, above: int, path: str) -> int:
    """Open a file of a directory for reading. Errors as `directory`."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=above)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise HostError(f"{path} is not believed: it is a link") from error
        raise
    return _believed(opened, fd, path)


def walk(opened: ExitStack, path: str) -> int:
    """Open the directory at an absolute path that somebody once wrote down: each on the way is believed in, and none is a link. Errors as `directory`."""
    fd = directory(opened, "/")
    seen = ""
    for name in filter(None, path.split("/")):
        seen += f"/{name}"
        fd = directory(opened, name, fd, seen)
    return fd


def _believed(opened: ExitStack, fd: int, path: str) -> int:
    opened.callback(os.close, fd)
    why = _distrust(os.fstat(fd))
    if why:
        raise HostError(
            f"{path} is not believed: {why}",
            hint="rundctl uses files of containers only if nobody but root could have written them",
        )
    return fd


def _distrust(info: os.stat_result) -> str:
    """Why not; empty if it is believed. In a sticky directory others cannot move what is not theirs (unlink(2)), and what is theirs is not believed."""
    if info.st_uid not in (0, os.geteuid()):
        return f"it belongs to uid {info.st_uid}"
    if stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX:
        return ""
    if info.st_mode & stat.S_IWOTH:
        return "everybody can write to it"
    if info.st_mode & stat.S_IWGRP and info.st_gid not in (0, os.getegid()):
        return f"group {info.st_gid} can write to it"
    return ""
