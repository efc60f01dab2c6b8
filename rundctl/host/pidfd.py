"""Processes by identity: a pid alone may have been reused (pidfd_open(2), proc_pid_stat(5))."""

from __future__ import annotations

import errno
import select
import time

from rundctl.errors import HostError, words
from rundctl.lean import os, signal

_POLL_MAX_S = 1 << 20
# The second and third say that the number is a thread's now, before Linux 6.9 and since.
_GONE = (errno.ESRCH, errno.EINVAL, errno.ENOENT)


def start_time(pid: int) -> int | None:
    """Start time of a live process in clock ticks since boot; None if it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            text = stat.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field, the name in parentheses, may itself hold blanks and parentheses.
    state, *rest = text[text.rindex(b")") + 2 :].split()
    return None if state in (b"Z", b"X") else int(rest[18])


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


class Process:
    """A process that is held by descriptor. Closes the descriptor as a context manager."""

    __slots__ = ("fd", "pid")

    def __init__(self, pid: int, fd: int) -> None:
        self.pid = pid
        self.fd = fd

    @classmethod
    def open(cls, pid: int, started: int | None = None) -> Process | None:
        """Hold the process with this pid and start time; None if it is gone. HostError if it cannot be opened."""
        try:
            fd = os.pidfd_open(pid)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise HostError(f"pidfd_open {pid}: {words(error)}") from error
        # Compared only now: as long as the descriptor is held the pid cannot be given to another process.
        if started is not None and start_time(pid) != started:
            os.close(fd)
            return None
        return cls(pid, fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def kill(self, signo: int = signal.SIGKILL) -> bool:
        """Send a signal; False if the process is gone."""
        try:
            signal.pidfd_send_signal(self.fd, signo)
        except ProcessLookupError:
            return False
        return True

    def wait(self, timeout_s: float) -> bool:
        """Wait until the process has ended (it may be a zombie); False when the time is over."""
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        return bool(poll(poller, timeout_s))


def poll(poller: select.poll, timeout_s: float) -> list[tuple[int, int]]:
    """poll(2), which itself counts milliseconds in an int, so not more than 24 days."""
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = max(0.0, deadline - time.monotonic())
        ready = poller.poll(min(left_s, _POLL_MAX_S) * 1000)
        if ready or left_s <= _POLL_MAX_S:
            return ready


def reap(pid: int) -> int | None:
    """Wait status of a child that has ended, as an exit code (128 + signal); None if it is no child of ours."""
    try:
        _, status = os.waitpid(pid, 0)
    except OSError as error:
        if error.errno == errno.ECHILD:
            return None
        raise
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code
