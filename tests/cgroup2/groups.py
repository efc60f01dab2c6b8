"""Cgroups and processes in them, for tests."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path("/sys/fs/cgroup")
DEADLINE_S = 120.0  # for what must come, on a busy machine


class Group:
    """A cgroup by its directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str) -> str:
        return (self.path / name).read_text().strip()

    def write(self, name: str, text: str) -> None:
        """One write(2), as the kernel wants a value; OSError is the kernel's own."""
        fd = os.open(self.path / name, os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def flat(self, name: str) -> dict[str, int]:
        """A file of keys and numbers."""
        return {key: int(value) for key, value in (line.split() for line in self.read(name).splitlines())}

    def child(self, name: str) -> Group:
        (self.path / name).mkdir()
        return Group(self.path / name)

    def pids(self) -> list[int]:
        return [int(line) for line in self.read("cgroup.procs").split()]

    def give(self, *controllers: str) -> None:
        """Give controllers to the children."""
        self.write("cgroup.subtree_control", " ".join(f"+{name}" for name in controllers))

    def remove(self) -> None:
        """With all that is below and in it."""
        if not self.path.exists():
            return
        self.write("cgroup.kill", "1")
        until(lambda: "populated 0" in self.read("cgroup.events"), f"{self.path} is empty")
        for directory, _, _ in os.walk(self.path, topdown=False):
            Path(directory).rmdir()


def until(probe: Callable[[], object], what: str) -> None:
    """Poll for a state of the kernel that sends no event."""
    end = time.monotonic() + DEADLINE_S
    while not probe():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.005)


class Member:
    """A process in a cgroup, from before its exec on."""

    def __init__(self, group: Group, argv: list[str], **options: object) -> None:
        def join() -> None:
            group.write("cgroup.procs", "0")

        self.process = subprocess.Popen(argv, preexec_fn=join, **options)  # noqa: PLW1509 (no threads here)
        self.pid = self.process.pid

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.process.wait(DEADLINE_S)
