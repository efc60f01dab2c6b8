"""Clone a file's extents (FICLONE, ioctl_ficlone(2)): a private copy at the price of its extent list."""

from __future__ import annotations

import errno
import fcntl

_FICLONE = 0x40049409
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
