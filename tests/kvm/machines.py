"""A container that answers what its machine is like (machine.c), for the tests of what differs under KVM."""

from __future__ import annotations

import hashlib
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rundctl.oci.linux import CAPABILITIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from ..system.conftest import Cli

PROBE = "/machine"
CLOCKS = {"realtime": time.CLOCK_REALTIME, "monotonic": time.CLOCK_MONOTONIC, "boottime": time.CLOCK_BOOTTIME}
_WRONG = (
    "soft lockup",
    "hard LOCKUP",
    "rcu: INFO",
    "blocked for more than",
    "clocksource: timekeeping watchdog",
    "Kernel panic",
    "BUG:",
    "unchecked MSR",
)


def make_rootfs(directory: Path) -> Path:
    """A root file system with machine.c's program, and what its mounts need."""
    rootfs = directory / "rootfs"
    for name in ("proc", "sys", "dev", "tmp"):
        (rootfs / name).mkdir(parents=True)
    source = Path(__file__).with_name("machine.c")
    flags = ("-static", "-O1", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE")
    subprocess.run(["gcc", *flags, source, "-o", rootfs / PROBE[1:]], check=True)
    return rootfs


def privileged(config: dict[str, Any]) -> None:
    """All capabilities and devices, nothing hidden."""
    sets = ("bounding", "effective", "permitted", "inheritable")
    config["process"]["capabilities"] = {name: list(CAPABILITIES) for name in sets}
    config["linux"] |= {"maskedPaths": [], "readonlyPaths": []}
    config["linux"]["resources"] = {"devices": [{"allow": True, "access": "rwm"}]}


class Talk:
    """A running container whose program answers each byte on its stdin with a line of names and numbers."""

    def __init__(self, cli: Cli, name: str, directory: Path) -> None:
        self.cli = cli
        self.name = name
        self._creating = cli.popen(
            "create", "--bundle", str(directory), name,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert self._creating.stdin is not None
        assert self._creating.stdout is not None
        self._ask, self._told = self._creating.stdin, self._creating.stdout
        assert self._creating.wait() == 0, self._told.read()
        cli("start", name)

    def read(self) -> str:
        """Its next line."""
        return self._told.readline().decode().strip()

    def ask(self) -> dict[str, int]:
        """A question and its answer."""
        self._ask.write(b"?")
        self._ask.flush()
        words = self.read().split()
        return {name: int(number) for name, number in zip(words[::2], words[1::2], strict=True)}

    def end(self) -> None:
        """The program ends with its stdin."""
        self._ask.close()
        assert self._told.read() == b""
        self._told.close()
        self.cli.wait_status(self.name, "stopped")
        self.cli("delete", self.name)


class Look:
    """The clocks of a container's guest, in nanoseconds, beside those of the host just before and after."""

    def __init__(self, talk: Talk) -> None:
        self.before = {name: time.clock_gettime_ns(clock) for name, clock in CLOCKS.items()}
        self.guest = talk.ask()
        self.after = {name: time.clock_gettime_ns(clock) for name, clock in CLOCKS.items()}

    def wrong_s(self) -> float:
        """How far the guest's date is off, at least: 0.0 if it may be right."""
        told = self.guest["realtime"]
        return max(0, self.before["realtime"] - told, told - self.after["realtime"]) / 1e9

    def went_s(self, since: Look, clock: str) -> float:
        """How far the guest's clock went since another look."""
        return (self.guest[clock] - since.guest[clock]) / 1e9

    def host_went_s(self, since: Look, clock: str) -> tuple[float, float]:
        """And the host's, at least and at most."""
        return (self.before[clock] - since.after[clock]) / 1e9, (self.after[clock] - since.before[clock]) / 1e9


@contextmanager
def talking(cli: Cli, bundle: Callable[..., Path], *names: str, argument: str = "clocks") -> Iterator[list[Talk]]:
    """Containers that run machine.c's program, one after the other; ended in the end."""
    talks = [Talk(cli, name, bundle(PROBE, *argument.format(index).split())) for index, name in enumerate(names)]
    yield talks
    for talk in talks:
        talk.end()


def digests(home: Path) -> dict[Path, str]:
    """Of the files that clones map."""
    found = {}
    for path in home.glob("templates/*/memory"):
        with path.open("rb") as file:
            found[path] = hashlib.file_digest(file, "blake2b").hexdigest()
    assert found
    return found


def is_quiet(messages: str) -> None:
    """A kernel's messages tell of no lock-up, no stall and no clock that was thrown out."""
    assert [line for line in messages.splitlines() if any(word in line for word in _WRONG)] == []


def messages_of_this_kernel() -> str:
    """What the bed's kernel has said."""
    return subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
