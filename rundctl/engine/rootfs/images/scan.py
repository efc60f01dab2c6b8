"""What is in a tree of files, by its inodes alone: for telling whether it changed, how large an image gets, and what an image could not hold."""

from __future__ import annotations

import errno
import os
import stat
from _blake2 import blake2b

from rundctl.errors import HostError, words
from rundctl.host import files

BLOCK = 4096
# What no mkfs.erofs takes, and no cp: longer paths; and extended attributes that neither EROFS nor ext4 has a number for.
_PATH_MAX = 4095
_XATTRS = ("user.", "trusted.", "security.", "system.posix_acl_access", "system.posix_acl_default")
# erofs-utils 1.5 (Debian 12) leaves out the one, without a word, and fails with the other; 1.8 (Debian 13) holds both.
_LEFT_OUT = "lost+found"
_NAME_MAX = 254


class Tree:
    """A tree as it was found.

    ``digest`` is another once anything was added, removed, changed or replaced. ``size_bytes``: of the regular files in whole blocks, each once.
    ``data_bytes``: without their holes. ``sparse``: one of them has holes. ``has_xattrs``: such can be there.
    ``doubtful``: a path that some versions of mkfs.erofs leave out or fail with, or "".
    """

    __slots__ = (
        "_facts",
        "_links",
        "_root",
        "data_bytes",
        "digest",
        "doubtful",
        "has_xattrs",
        "inodes",
        "size_bytes",
        "sparse",
    )

    def __init__(self, root: str) -> None:
        """HostError for what cannot be read, vanishes, or could not be in an image."""
        self._root = root
        self._facts = blake2b(digest_size=16)
        self._links: set[tuple[int, int]] = set()
        self.inodes = 0
        self.size_bytes = 0
        self.data_bytes = 0
        self.sparse = False
        self.has_xattrs = True
        self.doubtful = ""
        try:
            self._add("", os.lstat(root))
            self._walk()
        except OSError as error:
            raise HostError(f"{error.filename}: {words(error)}") from error
        self.digest = self._facts.digest()

    def _walk(self) -> None:
        directories = [self._root]
        while directories:
            directory = directories.pop()
            with os.scandir(directory) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
            for entry in entries:
                self._check(entry.path, entry.name)
                self._add(entry.path, entry.stat(follow_symlinks=False))
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.path)

    def _check(self, path: str, name: str) -> None:
        if name.startswith(_LEFT_OUT) or len(os.fsencode(name)) > _NAME_MAX:
            self.doubtful = path
        if len(os.fsencode(path)) > _PATH_MAX:
            raise HostError(f"{path[:64]}...: an image takes paths of at most {_PATH_MAX} bytes")
        strange = next((xattr for xattr in self._xattrs(path) if not xattr.startswith(_XATTRS)), "")
        if strange:
            raise HostError(f"{path}: an image cannot hold its extended attribute {strange}")

    def _xattrs(self, path: str) -> list[str]:
        try:
            return os.listxattr(path, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
            self.has_xattrs = False
            return []

    def _add(self, path: str, status: os.stat_result) -> None:
        identity = (status.st_dev, status.st_ino)
        facts = (
            *identity,
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_rdev,
            status.st_size,
            status.st_ctime_ns,
        )
        self._facts.update(b"%b\0%b\0" % (os.fsencode(path), repr(facts).encode()))
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            if identity in self._links:
                return
            self._links.add(identity)
        self.inodes += 1
        if stat.S_ISREG(status.st_mode):
            size = -(-status.st_size // BLOCK) * BLOCK
            has_holes = status.st_blocks * 512 + BLOCK <= status.st_size  # or is compressed
            self.size_bytes += size
            self.data_bytes += _data_bytes(path, status.st_size) if has_holes else size
            self.sparse = self.sparse or has_holes


def _data_bytes(path: str, size: int) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return sum(end - start for start, end in files.data_extents(fd, size))
    finally:
        os.close(fd)
