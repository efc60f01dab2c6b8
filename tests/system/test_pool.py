"""The cgroup pool with real VMs on the host's own hierarchies: leased, returned, refilled, and mended after a kill at any step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from rundctl.host import cgroupfs

from . import cgroup_tree
from .conftest import DEADLINE_S, RUNDCTL, Cli, JsonDict, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SLEEP = ("/bin/sleep", "1000")
MIB = 1 << 20
# `rundctl WORDS`, killed at a step (0: told how many there were, in the file that is named first): before or after each change it makes to pool, record or cgroups.
KILLED_AT_A_STEP = """
import os, signal, sys
tell, kill_at, words = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
done = 0

def step():
    global done
    done += 1
    if done == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

def counted(function):
    def call(*arguments, **named):
        step()
        result = function(*arguments, **named)
        step()
        return result
    return call

from rundctl import cli
from rundctl.engine.cgroups.ownership import Pool
from rundctl.engine.records.store import Container
from rundctl.host.cgroupfs import Hierarchy

for kind, names in ((Pool, ("lease", "unhint", "hint", "drop", "set_baseline")), (Container, ("save",)),
                    (Hierarchy, ("mkdir", "rmdir", "rename", "write", "mark"))):
    for name in names:
        setattr(kind, name, counted(getattr(kind, name)))
code = cli.main(words)
with open(tell, "w") as file:
    file.write(str(done))
sys.exit(code)
"""


class PoolOf:
    """One pool below a parent of the test's own."""

    def __init__(self, cli: Cli) -> None:
        self.cli = cli
        self.name = f"rundctl-pool-{os.getpid()}"
        self.parent = f"/{self.name}"

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            [RUNDCTL, "--debug", "pool", *words, "--parent", self.parent],
            capture_output=True,
            text=True,
            check=True,
            timeout=DEADLINE_S,
        )
        return done.stderr

    def status(self) -> JsonDict | None:
        found = json.loads(self.cli("pool", "status", "--json").stdout)
        return next((pool for pool in found if pool["parent"] == self.parent), None)

    def count(self, what: str) -> int:
        status = self.status()
        assert status is not None
        return int(status[what])

    def names(self) -> set[str]:
        """Names of the cgroups below the parent, in all hierarchies together."""
        return {path.rpartition("/")[2] for path in cgroup_tree.names(self.name)} - {self.name}

    def asks(self, change: Callable[[JsonDict], object] | None = None) -> Callable[[JsonDict], None]:
        """A bundle's change: its cgroup is below the parent."""

        def edit(config: JsonDict) -> None:
            config["linux"]["cgroupsPath"] = f"{self.parent}/c"
            if change is not None:
                change(config)

        return edit

    def is_as_new(self, size: int) -> None:
        """All slots are free, and there is nothing else; drained, nothing at all is left."""
        self("fill", "--size", str(size))
        assert self.status() == {
            "parent": self.parent,
            "open": True,
            "size": size,
            "free": size,
            "leased": 0,
            "orphaned": 0,
        }
        assert len(self.names()) == size
        assert all(name.startswith("rundctl.pool.") for name in self.names())
        self("drain")
        assert cgroup_tree.names(self.name) == set()


@pytest.fixture
def pool(cli: Cli) -> Iterator[PoolOf]:
    made = PoolOf(cli)
    yield made
    for container in json.loads(cli("list", "-f", "json").stdout) or []:
        cli("delete", "--force", container["id"])
    if made.status():
        made("drain")
    assert cgroup_tree.names(made.name) == set()


def cgroups_of(pid: int) -> set[str]:
    return {line.split(":", 2)[2] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()}


def test_a_container_lives_in_a_slot_and_gives_it_back(cli: Cli, bundle, pool: PoolOf, tmp_path: Path) -> None:
    pool("fill", "--size", "2")
    new = cgroup_tree.snapshot(pool.name)
    where = bundle(
        *SLEEP,
        change=pool.asks(
            lambda config: config["linux"].update(resources={"cpu": {"shares": 77}, "pids": {"limit": 100}})
        ),
    )
    log = tmp_path / "log"
    for _ in range(2):
        assert cli.popen("--debug", "--log", str(log), "create", "--bundle", str(where), "c").wait(DEADLINE_S) == 0
        pid = cli.state("c")["pid"]
        (qemu,) = [child.pid for child in psutil.Process(pid).children() if "qemu" in child.name()]
        slots = {f"{pool.parent}/c", *(f"{pool.parent}/rundctl.pool.{number}" for number in range(2))}
        assert cgroups_of(pid) == cgroups_of(qemu)
        assert cgroups_of(pid) <= slots
        assert (pool.count("free"), pool.count("leased")) == (1, 1)
        cli("--debug", "--log", str(log), "delete", "--force", "c")
        eventually(
            lambda: pool.count("free") == 2, "two are free: returned, or removed for what it has charged, and filled up"
        )
    text = log.read_text()
    assert f"cgroup {pool.parent}/c: slot " in text
    assert " is returned" in text or " is removed: " in text
    now = cgroup_tree.snapshot(pool.name)
    assert pool.names() == {path.rpartition("/")[2] for path in new} - {pool.name}
    for path, settings in new.items():
        assert {name: text for name, text in now[path].items() if not name.startswith("hugetlb")} == {
            name: text
            for name, text in settings.items()
            if not name.startswith("hugetlb")  # max and its number are the same
        }
    pool.is_as_new(2)


def test_an_empty_pool_makes_no_one_wait_and_is_filled_up_after_a_delete(cli: Cli, bundle, pool: PoolOf) -> None:
    pool("fill", "--size", "1")
    for name in ("a", "b"):
        cli.create(
            name,
            bundle(
                *SLEEP, change=lambda config, name=name: config["linux"].update(cgroupsPath=f"{pool.parent}/{name}")
            ),
        )
    assert (pool.count("free"), pool.count("leased")) == (0, 1)
    cli("delete", "--force", "b")
    eventually(lambda: pool.count("free") == 1, "the pool is filled up in the background")
    cli("delete", "--force", "a")
    assert (pool.count("free"), pool.count("leased")) == (1, 0)
    assert len(pool.names()) == 1
    pool.is_as_new(1)


def test_refill_off_leaves_it_to_pool_fill(cli: Cli, bundle, pool: PoolOf, configure) -> None:
    configure(pool_refill="off", pool_size=1)
    pool("fill")
    cli.create("a", bundle(*SLEEP, change=pool.asks()))
    pool("fill")  # another one
    cli.create("b", bundle(*SLEEP, change=lambda config: config["linux"].update(cgroupsPath=f"{pool.parent}/b")))
    cli.create("d", bundle(*SLEEP, change=lambda config: config["linux"].update(cgroupsPath=f"{pool.parent}/d")))
    said = cli("--debug", "delete", "--force", "d").stderr.decode()
    assert "filled" not in said
    assert pool.count("free") == 0


def test_what_is_leased_goes_with_its_container_when_the_pool_is_drained(cli: Cli, bundle, pool: PoolOf) -> None:
    pool("fill", "--size", "2")
    cli.create("c", bundle(*SLEEP, change=pool.asks()))
    pool("drain")
    assert (pool.count("open"), pool.count("leased")) == (0, 1)
    cli("delete", "--force", "c")
    assert pool.status() is None
    assert cgroup_tree.names(pool.name) == set()


def test_a_slot_that_saw_an_oom_is_removed(cli: Cli, bundle, pool: PoolOf) -> None:
    memory = next((each for each in cgroupfs.hierarchies() if "memory" in each.available("")), None)
    if memory is None:
        pytest.skip("no memory controller")
    pool("fill", "--size", "1")
    cli.create("c", bundle(*SLEEP, change=pool.asks()))
    record = json.loads((cli.root / "c/record.json").read_text())["cgroups"]
    path = next(path for directory, _, path in record["places"] if directory == memory.directory)
    os.kill(cli.state("c")["pid"], signal.SIGKILL)
    cli.wait_status("c", "stopped")
    memory.write(path, "memory.max" if memory.is_v2 else "memory.limit_in_bytes", str(8 * MIB))
    hog = f"open('{memory.directory}{path}/cgroup.procs', 'w').write('0'); bytearray({64 * MIB})"
    assert subprocess.run([sys.executable, "-c", hog], check=False).returncode == -signal.SIGKILL
    said = cli("--debug", "delete", "c").stderr.decode()
    assert "saw an OOM" in said
    pool.is_as_new(1)


def test_a_hierarchy_that_cannot_be_written_is_passed_over(bundle, cli: Cli, pool: PoolOf) -> None:
    """Read-only in this mount namespace, as in a container that was given the host's hierarchies to look at."""
    top = cgroupfs.hierarchies()[0].directory
    pool("fill", "--size", "1")
    where = bundle("/bin/true", change=pool.asks())
    script = (
        f"mount -o remount,bind,ro {top} && exec {' '.join(cli.argv('--debug', 'run', '--bundle', str(where), 'c'))}"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert f"no cgroup is made where {top} is read-only" in done.stderr
    assert "slot 0 of the pool" in done.stderr
    pool.is_as_new(1)


def test_mistakes(cli: Cli) -> None:
    assert b"--size takes a number from 1 on" in cli("pool", "fill", "--size", "0", code=1).stderr
    assert b"expected an absolute path" in cli("pool", "fill", "--parent", "here", code=1).stderr
    assert b"/none has no pool" in cli("pool", "drain", "--parent", "/none", code=1).stderr


class Killer:
    """The installed rundctl's own code, ended by SIGKILL at a step."""

    def __init__(self, cli: Cli, directory: Path) -> None:
        self.cli = cli
        self.tell = directory / "steps"

    def __call__(self, kill_at: int, *words: str) -> int:
        argv = [
            sys.executable,
            "-c",
            KILLED_AT_A_STEP,
            str(self.tell),
            str(kill_at),
            "--root",
            str(self.cli.root),
            *words,
        ]
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=DEADLINE_S,
            check=False,
            cwd="/",
        )
        return done.returncode

    def steps(self, *words: str) -> int:
        """How many steps there are when nobody kills it."""
        assert self(0, *words) == 0
        return int(self.tell.read_text())


@pytest.fixture
def killer(cli: Cli, tmp_path: Path) -> Killer:
    return Killer(cli, tmp_path)


def test_create_killed_at_each_step(cli: Cli, bundle, pool: PoolOf, killer: Killer) -> None:
    pool("fill", "--size", "2")
    words = ("create", "--bundle", str(bundle(*SLEEP, change=pool.asks())), "c")
    steps = killer.steps(*words)
    cli("delete", "--force", "c")
    assert steps > 10
    for kill_at in range(1, steps + 1, 2):
        assert killer(kill_at, *words) == -signal.SIGKILL
        cli("delete", "--force", "c")
    pool.is_as_new(2)


def test_delete_killed_at_each_step(cli: Cli, bundle, pool: PoolOf, killer: Killer) -> None:
    pool("fill", "--size", "2")
    where = bundle(*SLEEP, change=pool.asks())
    cli.create("c", where)
    steps = killer.steps("delete", "--force", "c")
    assert steps > 10
    for kill_at in range(1, steps + 1, 3):
        cli.create("c", where)
        killer(kill_at, "delete", "--force", "c")  # one whose slot was filled up in between has fewer steps
        cli("delete", "--force", "c")
    pool.is_as_new(2)


def test_fill_and_drain_killed_at_each_step(pool: PoolOf, killer: Killer) -> None:
    steps = killer.steps("pool", "fill", "--parent", pool.parent, "--size", "2")
    pool("drain")
    for kill_at in range(1, steps + 1, 3):
        killer(
            kill_at, "pool", "fill", "--parent", pool.parent, "--size", "2"
        )  # the one before may have left it less to do
        if kill_at % 2:
            pool("drain")
    pool("fill", "--size", "2")
    steps = killer.steps("pool", "drain", "--parent", pool.parent)
    for kill_at in range(1, steps + 1, 3):
        pool("fill", "--size", "2")
        killer(kill_at, "pool", "drain", "--parent", pool.parent)
    pool.is_as_new(2)
