"""Resource limits of this process (getrlimit(2)), without the import of ``resource``."""

from __future__ import annotations

INFINITY = (1 << 64) - 1
_NAME_WIDTH = 26  # of the first column (fs/proc/base.c, proc_pid_limits)


def inherited(path: str = "/proc/self/limits") -> dict[int, tuple[int, int]]:
    """Number of each limit, soft and hard: the kernel lists them in the order of their numbers."""
    with open(path, encoding="ascii") as file:
        rows = [line[_NAME_WIDTH:].split()[:2] for line in file.readlines()[1:]]
    return {number: (_value(soft), _value(hard)) for number, (soft, hard) in enumerate(rows)}


def _value(text: str) -> int:
    return INFINITY if text == "unlimited" else int(text)
