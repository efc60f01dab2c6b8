"""Files: replaced in one step, locked, nameless, copied without their holes."""

from __future__ import annotations

import errno
import fcntl

from rundctl.errors import HostError
from rundctl.host import interruption
from rundctl.lean import os
from rundctl.lean.contextlib import suppress

_CHUNK = 1 << 16
_BLOCK = 512  # of st_blocks, stat(2)
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR)  # open(2)
# copy_file_range(2): between two kinds of file systems, on one that cannot, in a container that may not.
_NO_COPY = (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    Extents = list[tuple[int, int]]  # (start, end) of parts of a file, in bytes


def replace(path: str, data: bytes, mode: int = 0o644, *, durable: bool = True) -> None:
    """Write ``path`` so that a reader sees the old contents or the new, whatever crashes. OSError if it cannot be.

    What means nothing after a crash of the host need not be ``durable``, which costs milliseconds on a disk.
    """
    temporary_path = temporary(path, os.getpid())
    try:
        unlink(
            temporary_path
        )  # of an earlier process of our pid; or somebody's link, in a directory that others write to
        fd = os.open(temporary_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            write_all(fd, data)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary_path, path)
    except BaseException as error:
        unlink(temporary_path)
        if isinstance(error, OSError) and error.filename is None:  # of write(2), on a full disk
            error.filename = path
        raise


def temporary(path: str, pid: int) -> str:
    """Where `replace`, called by a process, writes what is going to be ``path``; there when that was killed."""
    return f"{path}.{pid}.tmp"


def replace_link(path: str, target: str) -> None:
    """Make ``path`` a symlink to ``target``, in one step whatever was there. OSError if it cannot be."""
    temporary_path = temporary(path, os.getpid())
    unlink(temporary_path)
    os.symlink(target, temporary_path)
    os.rename(temporary_path, path)


def write_all(fd: int, data: bytes) -> None:
    """write(2) until all is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def unlink(path: str) -> None:
    """Remove a file if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def lock_directory(path: str, *, wait: bool) -> int | None:
    """Make a directory unless it is there, and lock it (flock(2)): a descriptor that holds the lock, or None if another has it and we do not wait.

    The lock goes with the last copy of the descriptor, so a directory that nobody has locked is one that its owner left. OSError if it cannot be made.
    """
    while True:
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        with suppress(FileNotFoundError):  # it was moved or removed by who had it: make another
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_path_of(fd, path):
                    return fd
            except BlockingIOError:
                os.close(fd)
                return None
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)


def is_path_of(fd: int, path: str) -> bool:
    """Whether ``path`` leads to what is open as ``fd``: who waited for a lock on it must ask, and who was given a descriptor's path by the kernel."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def try_lock(path: str) -> int | None:
    """Lock a file, made if missing: a descriptor that holds the lock, or None if another has it. OSError if it cannot be made."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


class Lock:
    """A flock(2) on a file that is made if missing; gone with the ``with`` block or the process. Exclusive, unless it may be ``shared``.

    Whoever waited while the file was removed, or another one mounted over it, waits for the new one.
    """

    __slots__ = ("_fd", "_kind", "_path")

    def __init__(self, path: str, *, shared: bool = False) -> None:
        self._path = path
        self._kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self._fd = -1

    def __enter__(self) -> Self:
        while True:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._lock()
                if is_path_of(self._fd, self._path):
                    return self
            except BaseException:
                os.close(self._fd)
                raise
            os.close(self._fd)

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def _lock(self) -> None:
        """Who has it may have been stopped: the wait for it can be interrupted."""
        try:
            fcntl.flock(self._fd, self._kind | fcntl.LOCK_NB)
        except BlockingIOError:
            with interruption.allowed():
                fcntl.flock(self._fd, self._kind)


def nameless(directory: str, mode: int = 0o600) -> int:
    """A new file without a name (O_TMPFILE) on the directory's file system, open for reading and writing. OSError if there can be none.

    Not all file systems have such files (NFS, 9p, FUSE, overlay before Linux 6.3): there it loses its name as soon as it is open. Who is killed in between
    leaves an empty file, which the next process of that pid removes.
    """
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    path = f"{directory}/.nameless.{os.getpid()}"
    unlink(path)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    os.unlink(path)
    return fd


def copy_sparse(source: int, target: int, *, may_share: bool = True, extents: Extents | None = None) -> int:
    """Copy the data extents of ``source`` into the empty file ``target`` and give it the same size. Bytes copied.

    Where the file system can, both share their extents, unless they may not. ``extents``: where the data are, if that is known.
    """
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    copy_some = _share_some if may_share else _write_some
    ranges = data_extents(source, size) if extents is None else extents
    return sum(_copy_range(copy_some, source, target, start, end) for start, end in ranges)


def hidden_extents(fd: int) -> Extents | None:
    """Where a file has other than zeroes, found by reading all of it; None if its file system tells that itself (`data_extents`), as most do."""
    status = os.fstat(fd)
    if status.st_blocks * _BLOCK >= status.st_size or list(data_extents(fd, status.st_size)) != [(0, status.st_size)]:
        return None
    found: Extents = []
    for start in range(0, status.st_size, _CHUNK):
        if not os.pread(fd, _CHUNK, start).strip(b"\0"):
            continue
        end = min(start + _CHUNK, status.st_size)
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def data_extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, end) of the parts of a file that are not holes (SEEK_DATA, SEEK_HOLE): all of it where the file system does not tell (9p, FUSE, NFS 3)."""
    offset = 0
    while offset < size:
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            if error.errno == errno.EINVAL:  # nobody tells where they are
                yield offset, size
                return
            raise
        end = os.lseek(fd, offset, os.SEEK_HOLE)
        yield offset, end
        offset = end


def content_digest(fd: int, extents: Extents | None = None) -> str:
    """SHA-256 over (offset, contents) of all chunks that are not zero: the same for the same contents, however sparse the file is.

    ``extents``: as of `copy_sparse`.
    """
    import hashlib  # never on the path of a start

    size = os.fstat(fd).st_size
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    zeroes = bytes(_CHUNK)
    done = 0
    for start, end in data_extents(fd, size) if extents is None else extents:
        for offset in range(max(done, start // _CHUNK * _CHUNK), end, _CHUNK):
            chunk = os.pread(fd, _CHUNK, offset)
            done = offset + _CHUNK
            if chunk != zeroes[: len(chunk)]:
                digest.update(offset.to_bytes(8, "little") + chunk)
    return digest.hexdigest()


def _copy_range(copy_some: Callable[[int, int, int, int], int], source: int, target: int, start: int, end: int) -> int:
    at = start
    while at < end:
        copied = copy_some(source, target, at, end)
        if copied == 0:
            raise HostError(f"copy of {end - start} bytes: the source became shorter")
        at += copied
    return end - start


def _share_some(source: int, target: int, at: int, end: int) -> int:
    try:
        return os.copy_file_range(source, target, end - at, at, at)
    except OSError as error:
        if error.errno not in _NO_COPY:
            raise
    return _write_some(source, target, at, end)


def _write_some(source: int, target: int, at: int, end: int) -> int:
    return os.pwrite(target, os.pread(source, min(_CHUNK, end - at), at), at)
