"""Resource limits of this process (getrlimit(2)), without the import of ``resource`` where none is changed."""

from __future__ import annotations

from rundctl.lean.contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

INFINITY = (1 << 64) - 1
NOFILE = 7  # RLIMIT_NOFILE
_NAME_WIDTH = 26  # of the first column (fs/proc/base.c, proc_pid_limits)


def inherited(path: str = "/proc/self/limits") -> dict[int, tuple[int, int]]:
    """Number of each limit, soft and hard: the kernel lists them in the order of their numbers."""
    with open(path, encoding="utf-8") as file:
        rows = [line[_NAME_WIDTH:].split()[:2] for line in file.readlines()[1:]]
    return {number: (_value(soft), _value(hard)) for number, (soft, hard) in enumerate(rows)}


@contextmanager
def room_for(descriptors: int) -> Iterator[None]:
    """For the length of a ``with`` block this process may open so many, if its hard limit lets it."""
    soft, hard = inherited()[NOFILE]
    if descriptors <= soft or soft == hard:
        yield
        return
    _set(hard, hard)
    try:
        yield
    finally:
        _set(soft, hard)


def _set(soft: int, hard: int) -> None:
    import resource

    resource.setrlimit(NOFILE, (_number(soft), _number(hard)))


def _number(value: int) -> int:
    return -1 if value == INFINITY else value  # as Python says it


def _value(text: str) -> int:
    return INFINITY if text == "unlimited" else int(text)
