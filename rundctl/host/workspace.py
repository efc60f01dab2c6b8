"""A directory that one process at a time works in, to move it into place in the end. Cold.

The lock is on the directory itself (flock(2)), so it goes with its owner, and no file of a lock is left: a workspace that nobody has locked is what a
killed owner left, and anyone may remove it. Who finds it locked waits, and says whom for.
"""

from __future__ import annotations

import fcntl
import shutil
import time

from rundctl.host import files
from rundctl.lean import os
from rundctl.lean.contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rundctl.types import Progress

SUFFIX = ".tmp"
_PATIENCE_S = 3.0  # a wait that is longer is told to those who asked for no progress, too
_LOOK_S = 0.05


class Workspace:
    """Locked and empty within a ``with`` block, and gone afterwards unless it was moved. OSError if it cannot be made.

    ``what`` its owner does follows "waiting for pid N, which"; ``progress`` is told at once, ``warn`` after three seconds. ``lock``: of who has it already.
    """

    __slots__ = ("_fd", "_path", "_progress", "_warn", "_what")

    def __init__(
        self, path: str, what: str, progress: Progress, warn: Progress | None = None, lock: int | None = None
    ) -> None:
        self._path = path
        self._what = what
        self._progress = progress
        self._warn = warn
        self._fd = lock

    def __enter__(self) -> str:
        if self._fd is None:
            self._fd = files.lock_directory(self._path, wait=False)
        if self._fd is None:
            self._fd = self._wait()
        try:
            _empty(self._path)
        except BaseException:
            self.__exit__()
            raise
        return self._path

    def __exit__(self, *_: object) -> None:
        assert self._fd is not None
        if files.is_path_of(self._fd, self._path):  # else it was moved, and the next may have made another
            shutil.rmtree(self._path, ignore_errors=True)
        os.close(self._fd)

    def _wait(self) -> int | None:
        said = f"waiting for {_owner(self._path)}, which {self._what}"
        self._progress(said)
        until = time.monotonic() + _PATIENCE_S
        while self._warn is not None and time.monotonic() < until:
            fd = files.lock_directory(self._path, wait=False)
            if fd is not None:
                return fd
            time.sleep(_LOOK_S)
        if self._warn is not None:
            self._warn(said)
        return files.lock_directory(self._path, wait=True)


def sweep(directory: str) -> None:
    """Remove the workspaces in a directory that their owners left by being killed."""
    for name in os.listdir(directory):
        path = f"{directory}/{name}"
        if name.startswith(".") and name.endswith(SUFFIX):
            with suppress(OSError):
                _remove_ownerless(path)


def _remove_ownerless(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if files.is_path_of(fd, path):  # its owner may have moved it into place meanwhile
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(fd)


def _owner(path: str) -> str:
    """Who has a directory locked, as this pid namespace counts (proc_locks(5)): the file system's device is told there as no stat tells it, so by inode."""
    try:
        inode = str(os.stat(path).st_ino)
        with open("/proc/locks", encoding="ascii") as file:
            rows = [line.split() for line in file]
    except OSError:
        return "another process"
    pids = [row[4] for row in rows if row[1] == "FLOCK" and row[3] == "WRITE" and row[5].rpartition(":")[2] == inode]
    alive = [
        pid for pid in pids if os.path.exists(f"/proc/{pid}")
    ]  # else its child has the lock, or it is of another pid namespace
    return f"pid {alive[0]}" if len(alive) == 1 else "another process"


def _empty(directory: str) -> None:
    """Of what a killed owner left."""
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
