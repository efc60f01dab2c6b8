"""A verb that is struck at a step leaves all or nothing: a container that is whole, with its pid file, or no trace of one.

Who is asked to end (TERM, INT) sees to that itself. What SIGKILL leaves `delete --force` mends. ``make test-stress`` strikes at every step
(RUNDCTL_STEPS=all); else some are drawn, by RUNDCTL_STEPS_SEED if that is given.
"""

from __future__ import annotations

import os
import random
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from . import conftest
from .conftest import Cli, eventually
from .steps import Stepper

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ALL = os.environ.get("RUNDCTL_STEPS") == "all"
SEED = os.environ.get("RUNDCTL_STEPS_SEED", str(time.time_ns()))
DRAWN = 2
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL) if ALL else (signal.SIGTERM, signal.SIGKILL)
OF_ONE = ("start", "delete", "delete --force")  # that is there already
VERBS = ("create", "run", "run --detach", *OF_ONE)


class Place:
    """Where verbs work on one container, and what of it is there afterwards."""

    def __init__(self, cli: Cli, make: Callable[..., Path], directory: Path) -> None:
        self.cli = cli
        self.pids = directory / "pids"  # of the pid file, which nothing else is in
        self.pids.mkdir()
        self.stepper = Stepper(cli, directory)
        self._marker = str(directory)
        self._suffix = conftest._cgroup_suffix(cli.root)
        self._bundles = {"run": make("/bin/true")}
        self._other = make("/bin/sleep", "1000")

    def strike(self, verb: str, step: int, signo: int) -> int:
        """Do what the verb needs, and the verb; the exit code of it. Step 0: it is not struck."""
        if verb in OF_ONE:
            self.cli.create("k", *self._made_of("create"))
            return self.stepper(step, signo, *verb.split(), "k")
        bundle, *flags = self._made_of(verb)
        return self.stepper(step, signo, *verb.split(), "--bundle", str(bundle), *map(str, flags), "k")

    def _made_of(self, verb: str) -> tuple[Any, ...]:
        return self._bundles.get(verb, self._other), "--pid-file", f"{self.pids}/pid"

    def status(self) -> str:
        """Of a container that lives and has its pid file; empty if there is none."""
        if not (self.cli.root / "k").exists():
            return ""
        state = self.cli.state("k")
        return str(state["status"]) if [path.read_text() for path in self.pids.iterdir()] == [str(state["pid"])] else ""

    def left(self) -> list[str]:
        """Traces."""
        found = [*os.listdir(self.cli.root), *os.listdir(self.pids)]
        return found + conftest._processes(self._marker, self._suffix) + conftest._cgroups(self._suffix)

    def forget_pid_file(self) -> None:
        """As with runc, that of a container that was complete is left to who asked for it."""
        (self.pids / "pid").unlink(missing_ok=True)


@pytest.fixture
def place(cli: Cli, bundle, tmp_path: Path) -> Place:
    return Place(cli, bundle, tmp_path)


def _drawn(steps: int, what: str) -> list[int]:
    every = range(1, steps + 1)
    return [*every] if ALL else sorted(random.Random(f"{SEED} {what}").sample(every, DRAWN))


@pytest.mark.parametrize("signo", SIGNALS)
@pytest.mark.parametrize("verb", VERBS)
def test_all_or_nothing(place: Place, cli: Cli, verb: str, signo: signal.Signals) -> None:
    assert place.strike(verb, 0, 0) == 0
    steps = place.stepper.told()
    cli("delete", "--force", "k")
    place.forget_pid_file()
    wrong = []
    for step in _drawn(steps, f"{verb} {signo}"):
        code = place.strike(verb, step, signo)
        why = _judge(place, verb, signo, code)
        if why:
            wrong.append(f"step {step} of {steps}, code {code}: {why}")
        cli("delete", "--force", "k")
        place.forget_pid_file()
        eventually(lambda: not place.left(), lambda: f"{verb}, {signo}, step {step}: left: {place.left()}")  # noqa: B023
    assert not wrong, f"{verb}, {signo!r}, seed {SEED}: {wrong}"


def _judge(place: Place, verb: str, signo: signal.Signals, code: int) -> str:
    """What is wrong; empty if nothing is."""
    by_signal = (-signo, 130) if signo == signal.SIGINT else (-signo,)
    if code not in (0, *by_signal):
        return "another end"
    status = place.status()
    if verb == "start" and not status:
        return "it is not what it was"
    if verb in OF_ONE or (verb == "run" and code == 0):
        place.forget_pid_file()
    if status:
        return "it failed, and has made a container" if verb == "run" and signo != signal.SIGKILL else ""
    if signo == signal.SIGKILL:
        place.cli("delete", "--force", "k")
        if verb == "run":  # complete, and ended since
            place.forget_pid_file()
    return _trace(place)


def _trace(place: Place) -> str:
    """What stays; empty if all goes, as the kernel removes what was killed."""
    deadline = time.monotonic() + 10
    while left := place.left():
        if time.monotonic() > deadline:
            return f"left: {left}"
        time.sleep(0.01)
    return ""
