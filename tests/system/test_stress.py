"""Many containers, twenty at a time, with everything killed at random: afterwards the cgroup tree is exactly as it was found.

200 of them with all other tests, 1000 by ``make test-stress``; RUNDCTL_STRESS_CYCLES and RUNDCTL_STRESS_SEED make other runs of it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from . import cgroup_tree
from .conftest import DEADLINE_S, RUNDCTL, Cli, eventually

CYCLES = int(os.environ.get("RUNDCTL_STRESS_CYCLES", "200"))
AT_ONCE = 20
POOL = 12  # fewer than at once, so that some are made on the spot
LIVES_MS = (0, 600)  # of a create that is killed: from before its first line to after its last


class Stress:
    """One worker's containers, one after the other. What it does is drawn from its own generator."""

    def __init__(self, cli: Cli, bundles: Path, parent: str, number: int, seed: str) -> None:
        self.cli = cli
        self.bundles = bundles
        self.parent = parent
        self.number = number
        self.random = random.Random(f"{seed}-{number}")
        self.done: Counter[str] = Counter()

    def cycle(self, name: str) -> None:
        directory = self.bundle(name)
        with (directory / "stderr").open("wb") as stderr:
            create = self.cli.popen("create", "--bundle", str(directory), name, stderr=stderr)
        if self.random.random() < 0.6:
            self.kill_after(create, LIVES_MS)
            self.done["creates killed"] += create.wait(DEADLINE_S) == -signal.SIGKILL
        elif create.wait(300) == 0:
            self.done["created"] += 1
            self.use(name)
        else:
            self.done[f"failed: {(directory / 'stderr').read_text().replace(name, 'ID')}"] += 1
        self.delete(name)

    def use(self, name: str) -> None:
        """Start it, or kill its shim, or neither."""
        fate = self.random.choice(("start", "shim", "leave"))
        if fate == "start":
            self.done["started"] += self.cli("start", name, code=None).returncode == 0
        elif fate == "shim":
            os.kill(self.cli.state(name)["pid"], signal.SIGKILL)
            self.done["shims killed"] += 1

    def delete(self, name: str) -> None:
        """Delete it; killed at first, perhaps more than once, the last one must succeed."""
        while self.random.random() < 0.4:
            delete = self.cli.popen("delete", "--force", name)
            self.kill_after(delete, (0, 300))
            self.done["deletes killed"] += delete.wait(DEADLINE_S) == -signal.SIGKILL
        self.cli("delete", "--force", name)
        assert not (self.cli.root / name).exists()
        self.done["deleted"] += 1

    def kill_after(self, process: subprocess.Popen[bytes], bounds_ms: tuple[int, int]) -> None:
        """Kill it after a random time; one that has ended before is as good."""
        try:
            process.wait(self.random.uniform(*bounds_ms) / 1000)
        except subprocess.TimeoutExpired:
            process.kill()

    def bundle(self, name: str) -> Path:
        """The same container for all, but for its cgroup."""
        directory = self.bundles / f"{self.number}"
        directory.mkdir(exist_ok=True)
        config = json.loads((self.bundles / "config.json").read_text())
        config["linux"]["cgroupsPath"] = f"{self.parent}/{name}"
        config["linux"]["resources"] = {
            "pids": {"limit": self.random.randint(64, 4096)},
            "cpu": {"shares": self.random.randint(900, 1100)},
        }
        (directory / "config.json").write_text(json.dumps(config))
        return directory


def pool(*words: str) -> bytes:
    return subprocess.run([RUNDCTL, "pool", *words], check=True, capture_output=True, timeout=DEADLINE_S).stdout


@pytest.fixture
def parent(cli: Cli):
    """Somebody's parent, with settings and a child of their own."""
    name = f"rundctl-stress-{os.getpid()}"
    made = []
    for hierarchy in cgroup_tree.hierarchies():
        for path in (f"/{name}", f"/{name}/theirs"):
            cgroup_tree.make(hierarchy, path)
            made.append((hierarchy, path))
    yield f"/{name}"
    for container in json.loads(cli("list", "-f", "json").stdout) or []:  # only after a failure
        cli("delete", "--force", container["id"], code=None)
    if any(each["parent"] == f"/{name}" for each in json.loads(pool("status", "--json"))):
        pool("drain", "--parent", f"/{name}")
    for hierarchy, path in reversed(made):
        hierarchy.rmdir(path)


def test_the_tree_is_as_it_was(cli: Cli, bundle, parent: str, tmp_path: Path) -> None:
    bundles = bundle("/bin/sleep", "1000")
    seed = os.environ.get("RUNDCTL_STRESS_SEED", str(time.time_ns()))
    name = parent[1:]
    found = cgroup_tree.snapshot()
    pool("fill", "--parent", parent, "--size", str(POOL))
    workers = [Stress(cli, bundles, parent, number, seed) for number in range(AT_ONCE)]
    errors: list[BaseException] = []
    numbers = iter(range(CYCLES))
    draw = threading.Lock()

    def work(worker: Stress) -> None:
        try:
            while not errors:
                with draw:
                    number = next(numbers, None)
                if number is None:
                    return
                worker.cycle(f"s{number}")
        except BaseException as error:  # noqa: BLE001 (it is the test's, not the thread's)
            errors.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in workers]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = sum((worker.done for worker in workers), Counter())
    sys.stdout.write(f"seed {seed}: {time.monotonic() - began:.0f} s, {dict(done)}\n")
    assert not errors, f"seed {seed}: {errors[0]!r}"
    assert done["deleted"] == CYCLES
    for what in ("creates killed", "created", "started", "shims killed", "deletes killed"):
        assert done[what] > CYCLES / 50, f"seed {seed}: hardly any {what}: {done}"
    assert not [what for what in done if what.startswith("failed")], f"seed {seed}: {done}"
    check(found, name, parent, seed)


def check(found: dict[str, dict[str, str]], name: str, parent: str, seed: str) -> None:
    """Every slot is free again, once; and once the pool is drained the tree is as it was found."""
    filled = eventually(lambda: full(parent), f"seed {seed}: the pool is full again")
    assert (filled["leased"], filled["orphaned"]) == (0, 0), f"seed {seed}"
    slots = {path.rpartition("/")[2] for path in cgroup_tree.names(name)} - {name, "theirs"}
    assert len(slots) == filled["free"], f"seed {seed}: {slots}"
    pool("drain", "--parent", parent)
    left = cgroup_tree.snapshot()
    ours = {path: settings for path, settings in left.items() if name in path.split("/")}
    assert ours == {path: settings for path, settings in found.items() if name in path.split("/")}, f"seed {seed}"
    assert [path for path in set(left) - set(found) if "rundctl.pool." in path and name in path] == [], f"seed {seed}"
    others = changed(found)
    eventually(
        lambda: not others or not changed(found), f"seed {seed}: what was there for good is as it was: {others}", 60
    )


def changed(found: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Uppermost cgroups that have other settings than they had. Other suites may have containers on this host: what they make and remove is theirs."""
    now = cgroup_tree.snapshot()
    tops = {path for path in found if path.count("/") <= 5 and "rundctl" not in path}
    return {path: now[path] for path in tops & set(now) if now[path] != found[path]}


def full(parent: str) -> dict[str, int] | None:
    """The pool's status, once it has been filled up: what was killed is reclaimed by that, in the background or now."""
    pool("fill", "--parent", parent, "--size", str(POOL))
    (status,) = (each for each in json.loads(pool("status", "--json")) if each["parent"] == parent)
    return status if status["leased"] == status["orphaned"] == 0 and status["free"] == POOL else None
