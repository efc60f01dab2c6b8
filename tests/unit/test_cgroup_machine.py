"""The pool's state machine: anything, killed at any step, in any order; never two owners, never a slot lost, and in the end the tree as it was found."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rundctl.engine.cgroups import ownership, upkeep
from rundctl.engine.cgroups.ownership import Pool
from rundctl.host import files

from .cgroup_fake import FakeHierarchy, tree
from .cgroup_rig import Rig

PARENT = "/pods/one"
NAMES = st.sampled_from(["a", "b", "c", "d"])  # few, so that one is used again
STEPS = st.one_of(st.just(0), st.integers(1, 60))  # 0: nobody is killed
DEAD, ALIVE = 1, 2  # start times, by which the fake host knows who lives
LIMIT = "4096"


class Killed(BaseException):
    """What SIGKILL is to a process: nothing of it runs any more (`with` blocks only close descriptors here, as the kernel would)."""


class Killer:
    """Counts what a process does to the world, and kills it before a step."""

    def __init__(self) -> None:
        self.left = 0

    def step(self) -> None:
        if self.left:
            self.left -= 1
            if not self.left:
                raise Killed


KILLER = Killer()


def counted(function: Any) -> Any:
    def call(*arguments: Any, **named: Any) -> Any:
        KILLER.step()
        result = function(*arguments, **named)
        KILLER.step()
        return result

    return call


class Hierarchy(FakeHierarchy):
    """Every change is a step."""

    mkdir = counted(FakeHierarchy.mkdir)
    rmdir = counted(FakeHierarchy.rmdir)
    rename = counted(FakeHierarchy.rename)
    write = counted(FakeHierarchy.write)
    mark = counted(FakeHierarchy.mark)


class Machine(RuleBasedStateMachine):
    """Containers of four names on a hybrid host, with one pool. Each rule is one process; the number says at which step it is killed."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = pytest.MonkeyPatch()
        for name in (
            "lease",
            "unhint",
            "hint",
            "drop",
            "set_baseline",
            "take_over",
            "shut",
            "is_over",
            "offer",
            "forget",
            "add_made",
            "set_size",
        ):
            self.patches.setattr(Pool, name, counted(getattr(Pool, name)))
        self.patches.setattr(files, "replace_link", counted(files.replace_link))
        self.patches.setattr(ownership, "start_time", lambda _pid: ALIVE)
        self.directory = tempfile.TemporaryDirectory()
        at = Path(self.directory.name)
        fakes = [
            Hierarchy(each.directory, each.controllers, is_v2=each.is_v2)
            for each in tree(at / "tree", v1=("cpu,cpuacct", "memory"))
        ]
        self.rig = Rig(fakes, at, PARENT)
        self.found = self.everything()

    def everything(self) -> set[Path]:
        return set((Path(self.directory.name) / "tree").rglob("*"))

    def run(self, kill_at: int, function: Any, *arguments: Any) -> bool:
        """One process; whether it came to its end. Then it is dead."""
        KILLER.left = kill_at
        try:
            function(*arguments)
        except Killed:
            return False
        finally:
            KILLER.left = 0
            self.bury()
        return True

    def bury(self) -> None:
        """The process is gone: the fake host says so of every lease it made."""
        for number in self.rig.pool.leased():
            text = self.rig.pool.text(number)
            assert text is not None
            pid, _, nonce = text.split(" ", 2)
            dead = f"{pid} {DEAD} {nonce}"
            link = Path(self.rig.pool.directory) / "leases" / str(number)
            link.unlink()
            link.symlink_to(dead)
            for record in self.rig.root.glob("*/record.json"):
                record.write_text(record.read_text().replace(f'"{text}"', f'"{dead}"'))

    def alive(self) -> list[str]:
        return [path.parent.name for path in self.rig.root.glob("*/record.json")]

    def whole(self) -> list[str]:
        return [name for name in self.alive() if (self.rig.root / name / "made").exists()]

    @initialize(size=st.integers(1, 3))
    def first_fill(self, size: int) -> None:
        self.rig.fill(size)
        self.bury()

    @rule(size=st.integers(1, 3), kill_at=STEPS)
    def fill(self, size: int, kill_at: int) -> None:
        if self.run(kill_at, self.rig.fill, size):
            assert len(self.rig.pool.free()) >= size

    @precondition(lambda self: self.rig.pool.exists())
    @rule(kill_at=STEPS, seldom=st.integers(0, 3))
    def drain(self, kill_at: int, seldom: int) -> None:
        if seldom:
            return
        if self.run(kill_at, self.rig.drain):
            assert not self.rig.pool.is_open()

    @precondition(lambda self: self.rig.pool.is_open())
    @rule(kill_at=STEPS)
    def refill(self, kill_at: int) -> None:
        keeper = upkeep.Upkeep(self.rig.hierarchies, self.rig.pool, self.rig.said.append)
        if self.run(kill_at, keeper.refill):
            assert self.rig.status()["orphaned"] == 0

    @precondition(lambda self: len(self.alive()) < 4)
    @rule(data=st.data(), kill_at=STEPS)
    def create(self, data: st.DataObject, kill_at: int) -> None:
        name = data.draw(NAMES.filter(lambda name: name not in self.alive()))
        self.run(kill_at, self._create, name)

    def _create(self, name: str) -> None:
        self.rig.create(name)
        for place in self.rig.places(name):
            file = "memory.max" if place.hierarchy.is_v2 else "memory.limit_in_bytes"
            if (Path(place.directory) / file).exists():
                (Path(place.directory) / file).write_text(f"{LIMIT}\n")
        (self.rig.root / name / "made").touch()

    @precondition(lambda self: self.alive())
    @rule(data=st.data(), kill_at=STEPS)
    def delete(self, data: st.DataObject, kill_at: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.alive())))
        (self.rig.root / name / "made").unlink(missing_ok=True)
        if (
            self.run(kill_at, self.rig.give_back, name) and not kill_at
        ):  # killed late means: before it forgot the container
            self.rig.forget(name)

    @rule(hierarchy=st.integers(0, 2), number=st.integers(0, 4))
    def foreign_rmdir(self, hierarchy: int, number: int) -> None:
        each = self.rig.hierarchies[hierarchy]
        slot = f"{PARENT}/rundctl.pool.{number}"
        in_use = {place.directory for name in self.whole() for place in self.rig.places(name)}
        if (
            each.exists(slot) and each.directory + slot not in in_use
        ):  # a slot in use has members, so it cannot be removed
            each.rmdir(slot)

    @invariant()
    def never_two_owners(self) -> None:
        taken: dict[str, str] = {}
        for name in self.whole():
            for place in self.rig.places(name):
                assert place.hierarchy.exists(place.path), f"{place.directory} of {name} is gone"
                assert taken.setdefault(place.directory, name) == name, f"{place.directory} has two owners"

    @invariant()
    def what_is_ready_is_as_good_as_new(self) -> None:
        pool = self.rig.pool
        for number in set(pool.free()) - set(pool.leased()):
            for hierarchy in self.rig.hierarchies:
                for file in ("memory.max", "memory.limit_in_bytes"):
                    path = Path(f"{hierarchy.directory}{PARENT}/rundctl.pool.{number}/{file}")
                    assert not path.exists() or path.read_text().strip() != LIMIT, path

    def teardown(self) -> None:
        """Whatever happened: once all is deleted and drained, nothing is left, and nothing is missing."""
        try:
            for name in self.alive():
                self.rig.give_back(name)
                self.rig.forget(name)
            if self.rig.pool.exists():
                self.rig.drain()
            for each in self.rig.hierarchies:
                assert each.children(PARENT) == []
            assert ownership.pools(self.rig.state) == []
        finally:
            self.patches.undo()
            self.directory.cleanup()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=25)
