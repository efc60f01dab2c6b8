"""Marks of the host's overlayfs in an upper directory that a guest does not see there: they are ``trusted.*`` attributes, which QEMU's 9p server passes over.

Without ``opaque`` the guest's overlayfs shows what was deleted below a directory that was made anew, without ``redirect`` a renamed directory is empty,
without ``metacopy`` a file is a hole, and without ``whiteout`` (since Linux 6.7, within directories that are ``opaque`` by an x) a deleted file is an empty
one. Whiteouts that are devices come through. ``security.capability`` does not, but nothing is misread without it (docs/rootfs.md).
"""

from __future__ import annotations

import os
from contextlib import suppress

from rundctl.errors import words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX = "trusted.overlay."
# Where something was copied from, how inodes and links are numbered: nothing that changes what is seen. What is not known here counts as a mark.
_HARMLESS = frozenset(f"{_PREFIX}{name}" for name in ("origin", "impure", "nlink", "upper", "uuid"))
ENTRIES_MAX = 4000  # 4 µs each (measured on ext4), of every start


def unseen(upper: str) -> str:
    """Why a guest would misread an upper directory, in words, or why it may; "" if it would not."""
    try:
        for count, path in enumerate(_paths(upper)):
            if count > ENTRIES_MAX:
                return f"its upper directory {upper} has more than {ENTRIES_MAX} entries, too many to look for marks"
            mark = _mark(path)
            if mark:
                return f"its upper directory has {mark} on {path}, which a guest does not see"
    except OSError as error:  # a path may be longer than can be named
        return f"its upper directory cannot be looked through: {error.filename or upper}: {words(error)}"
    return ""


def _paths(top: str) -> Iterator[str]:
    """A directory and all below; what vanishes meanwhile is left out."""
    yield top
    directories = [top]
    while directories:
        with suppress(FileNotFoundError), os.scandir(directories.pop()) as entries:
            for entry in entries:
                yield entry.path
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.path)


def _mark(path: str) -> str:
    """The first mark of one file, if it has any."""
    with suppress(FileNotFoundError):
        for name in os.listxattr(path, follow_symlinks=False):
            if name.startswith(_PREFIX) and name not in _HARMLESS:
                return name
    return ""
