"""Clones of one template are different machines from the first instruction of their containers on, and know the time."""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .conftest import DEADLINE_S, Cli, JsonDict

if TYPE_CHECKING:
    from collections.abc import Callable

CLONES = 20
CLOCK_ERROR_NS = 50_000_000
ANSWERS = 9  # lines of identity.c
# Bits of ASLR are few enough (22 of the stack's) to collide by chance: `stack` is looked at in another way.
UNIQUE = ("getrandom", "urandom", "at_random", "canary", "boot_id", "machine_id", "hostname")


class Clone:
    """A container that runs identity.c."""

    def __init__(self, cli: Cli, container_id: str, bundle: Path, *flags: str) -> None:
        self.cli = cli
        self.id = container_id
        # The shim takes over these ends, as it takes over those that conmon gives.
        self.creating = cli.popen(
            "create", *flags, "--bundle", str(bundle), container_id,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.told: dict[str, str] = {}
        self.before_ns = 0

    def start(self) -> subprocess.Popen[bytes]:
        self.before_ns = time.time_ns()
        return self.cli.popen("start", self.id)

    def read(self) -> int:
        """Take the next line; when it was there, in nanoseconds."""
        assert self.creating.stdout is not None
        line = self.creating.stdout.readline().decode()
        arrived_ns = time.time_ns()
        name, _, value = line.strip().partition(" ")
        assert value, (self.id, line, self.told)
        self.told[name] = value
        return arrived_ns

    def ask_time(self) -> tuple[int, int, int]:
        """Host's time before, guest's time, host's time after."""
        assert self.creating.stdin is not None
        before = time.time_ns()
        self.creating.stdin.write(b"?")
        self.creating.stdin.flush()
        after = self.read()
        return before, int(self.told["time"]), after

    def end(self) -> None:
        """The checker ends with its stdin."""
        assert self.creating.stdin is not None
        assert self.creating.stdout is not None
        self.creating.stdin.close()
        assert self.creating.stdout.read() == b""
        self.cli.wait_status(self.id, "stopped")
        self.cli("delete", self.id)


@pytest.fixture(scope="module")
def identity_rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system that holds nothing but the checker."""
    rootfs = tmp_path_factory.mktemp("identity") / "rootfs"
    for name in ("proc", "sys", "dev", "etc"):
        (rootfs / name).mkdir(parents=True)
    (rootfs / "etc/machine-id").write_text("uninitialized\n")
    source = Path(__file__).with_name("identity.c")
    subprocess.run(["gcc", "-static", "-O1", "-Wall", "-Werror", source, "-o", rootfs / "identity"], check=True)
    return rootfs


@pytest.fixture
def identity(identity_rootfs: Path, bundle: Callable[..., Path]) -> Path:
    def change(config: JsonDict) -> None:
        config["root"]["path"] = str(identity_rootfs)
        del config["hostname"]  # else it is the bundle's, and the same

    return bundle("/identity", change=change)


def _nothing_is_drawn_twice(clones: list[Clone]) -> None:
    for name in UNIQUE:
        values = [clone.told[name] for clone in clones]
        assert all(values)
        assert len(set(values)) == CLONES, (name, sorted(values))
    drawn = [value for clone in clones for value in (clone.told["getrandom"], clone.told["urandom"])]
    assert len(set(drawn)) == 2 * CLONES
    assert len({clone.told["stack"] for clone in clones}) > CLONES // 2
    for clone in clones:
        assert clone.told["hostname"] == clone.id
        # glibc's canary is the seed with a zero for its lowest byte, which is the first in memory.
        assert bytes.fromhex(clone.told["canary"])[::-1][1:] == bytes.fromhex(clone.told["at_random"])[1:8]


def _the_clock_is_right(clones: list[Clone]) -> None:
    """Between a question and its answer, to 50 ms: however busy the host was when the clones were told the time."""
    wrong = []
    for clone in clones:
        first = (clone.before_ns, int(clone.told["time"]), int(clone.told["after"]))
        for before, guest, after in (first, clone.ask_time()):
            if not before - CLOCK_ERROR_NS <= guest <= after + CLOCK_ERROR_NS:
                late_ms = (before - guest) / 1e6
                wrong.append(f"{clone.id}: {late_ms:.1f} ms behind, asked within {(after - before) / 1e6:.1f} ms")
    assert wrong == []


def test_clones_made_at_once_differ_and_know_the_time(cli: Cli, identity: Path) -> None:
    made = [Clone(cli, f"clone{index}", identity) for index in range(CLONES)]
    with ExitStack() as opened:
        for clone in made:
            opened.enter_context(clone.creating)
        _talk(made)


def _talk(made: list[Clone]) -> None:
    for clone in made:
        assert clone.creating.wait(DEADLINE_S) == 0, clone.creating.stdout and clone.creating.stdout.read()
    starting = [clone.start() for clone in made]
    for clone in made:
        for _ in range(ANSWERS):
            clone.told["after"] = str(clone.read())
    assert [start.wait(DEADLINE_S) for start in starting] == [0] * CLONES
    _nothing_is_drawn_twice(made)
    _the_clock_is_right(made)
    for clone in made:
        clone.end()
