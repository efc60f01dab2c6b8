"""The time line of a start, for ``--timings`` and the log."""

from __future__ import annotations

import time


class Stages:
    """Named stages and how long each took, in milliseconds, since the call's own process began."""

    __slots__ = ("_beside", "_last_ns", "rows")

    def __init__(self) -> None:
        self.rows: list[tuple[str, float]] = []
        self._beside: list[tuple[str, float]] = []
        self._last_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._add("interpreter", _process_start_ns())

    def _add(self, name: str, since_ns: int) -> None:
        self.rows.append((name, (self._last_ns - since_ns) / 1e6))

    def mark(self, name: str) -> None:
        """End the stage ``name``: all since the last mark belongs to it."""
        before, self._last_ns = self._last_ns, time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._add(name, before)

    def beside(self, **us: int) -> None:
        """Note what another process did meanwhile, in microseconds: nobody waited for it as such, so it is no part of the total."""
        self._beside += [(name, value / 1000) for name, value in us.items()]

    def describe(self) -> str:
        """One line: every stage and the total, and in parentheses what was done beside them."""
        total = sum(ms for _, ms in self.rows)
        line = " ".join([*(f"{name}={ms:.1f}" for name, ms in self.rows), f"total={total:.1f} ms"])
        return f"{line} (beside: {' '.join(f'{name}={ms:.2f}' for name, ms in self._beside)})" if self._beside else line


def _process_start_ns() -> int:
    """Start of this process on CLOCK_BOOTTIME, to the clock tick that proc_pid_stat(5) gives (10 ms)."""
    with open("/proc/self/stat", "rb") as stat:
        text = stat.read()
    return int(text[text.rindex(b")") + 2 :].split()[19]) * 10_000_000
