"""Clone a file's extents (FICLONE, ioctl_ficlone(2)): a private copy at the price of its extent list."""

from __future__ import annotations

import errno
import fcntl

from rundctl.host import files
from rundctl.lean import os

_FICLONE = 0x40049409
_SCRATCH_SIZE = 1 << 16  # bytes; more than one block of any file system
_NOT_POSSIBLE = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS)


def clone(source: int, target: int) -> bool:
    """Make the file ``target`` share all extents of ``source``. False if their file system cannot; OSError for all else."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _NOT_POSSIBLE:
            return False
        raise
    return True


def works_in(directory: str) -> bool:
    """Whether files in a directory can share extents: tried, on files without a name. A file system's kind does not tell: XFS comes with and without."""
    source = files.nameless(directory)
    try:
        target = files.nameless(directory)
        try:
            files.write_all(source, bytes([1]) * _SCRATCH_SIZE)
            return clone(source, target)
        finally:
            os.close(target)
    finally:
        os.close(source)
