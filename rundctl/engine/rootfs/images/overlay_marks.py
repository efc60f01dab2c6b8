"""Marks of the host's overlayfs in an upper directory that a guest does not see there: they are ``trusted.*`` attributes, which QEMU's 9p server passes over.

Without ``opaque`` the guest's overlayfs shows what was deleted below a directory that was made anew, without ``redirect`` a renamed directory is empty,
without ``metacopy`` a file is a hole, and without ``whiteout`` (since Linux 6.7, within directories that are ``opaque`` by an x) a deleted file is an empty
one. Whiteouts that are devices come through. ``security.capability`` does not, but nothing is misread without it (docs/rootfs.md).
"""

from __future__ import annotations

from rundctl.errors import words
from rundctl.lean import os
from rundctl.lean.contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX = "trusted.overlay."
_OPAQUE = f"{_PREFIX}opaque"
_REDIRECT = f"{_PREFIX}redirect"
# Where something was copied from, how inodes and links are numbered: nothing that changes what is seen. What is not known here counts as a mark.
_HARMLESS = frozenset(f"{_PREFIX}{name}" for name in ("origin", "impure", "nlink", "upper", "uuid"))
ENTRIES_MAX = 4000  # 5 µs each (measured on ext4), at two moments of a start


def unseen(upper: str, lowers: tuple[str, ...]) -> str:
    """Why a guest would misread an upper directory on these layers, in words, or why it may; "" if it would not."""
    left = ENTRIES_MAX
    try:
        for path in _paths(upper):
            left -= 1
            for mark in _marks(path):
                left -= len(lowers)
                if not _is_of_a_new_directory(mark, path, upper, lowers):
                    return f"its upper directory has {mark} on {path}, which a guest does not see"
            if left < 0:
                return (
                    f"its upper directory {upper} has too many entries to look for marks (about {ENTRIES_MAX} can be)"
                )
    except OSError as error:  # a path may be longer than can be named
        return f"its upper directory cannot be read: {error.filename or upper}: {words(error)}"
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


def _marks(path: str) -> list[str]:
    """Those of one file that matter."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except FileNotFoundError:
        return []
    return [name for name in names if name.startswith(_PREFIX) and name not in _HARMLESS]


def _is_of_a_new_directory(mark: str, path: str, upper: str, lowers: tuple[str, ...]) -> bool:
    """Whether it hides nothing: with ``redirect_dir`` or ``index`` overlayfs makes each new directory opaque, to look no further.

    An x for a value says that whiteouts are attributes there.
    """
    if mark != _OPAQUE or os.getxattr(path, mark) != b"y":
        return False
    inside = os.path.relpath(path, upper)
    return not any(_may_have(lower, inside) for lower in lowers)


def _may_have(lower: str, inside: str) -> bool:
    """By this name, or in a layer further down by one that is not looked for."""
    parents = (inside[:end] for end, letter in enumerate(inside) if letter == "/")
    return _exists(f"{lower}/{inside}") or any(_is_redirected(f"{lower}/{parent}") for parent in parents)


def _is_redirected(path: str) -> bool:
    """Whether what overlayfs shows of a directory in the layers below this one has another name there."""
    try:
        return _REDIRECT in os.listxattr(path, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _exists(path: str) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
