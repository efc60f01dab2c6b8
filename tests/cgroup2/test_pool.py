"""Slots of the pool on version 2, with the real shim in them: born inside, killed, spoilt, reclaimed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from groups import ROOT, Group, until
from shim_rig import Shim

from rundctl.engine.cgroups import kinds
from rundctl.host import cgroup_settings, cgroupfs, native
from rundctl.host.cgroup_settings import Limits

from ..unit.cgroup_rig import PARENT, Rig, remove_all

GREEDY = ["/usr/bin/python3", "-I", "-S", "-c", "x = bytearray(200 << 20)"]


@pytest.fixture
def rig(tmp_path):
    found = cgroupfs.hierarchies()
    cgroupfs.make(found[0], PARENT)
    made = Rig(found, tmp_path)
    yield made
    if made.pool.exists():
        made.drain()
    remove_all(found, PARENT)


@pytest.fixture
def launch(tmp_path):
    shims = []

    def make(lease):
        directory = tmp_path / f"shim{len(shims)}"
        directory.mkdir()
        _, v2 = lease.join_descriptors()
        shims.append(Shim(native.program("shim"), directory, options=("--cgroup2", str(v2)), keep=(v2,)).started())
        os.close(v2)
        return shims[-1]

    yield make
    for shim in shims:
        shim.end()


def slot_of(lease):
    (place,) = lease.places
    return Group(Path(place.directory))


def test_a_shim_is_born_in_its_slot_and_the_slot_returns(rig, launch):
    rig.fill(1)
    lease = rig.create("c")
    slot = slot_of(lease)
    assert slot.path == ROOT / PARENT[1:] / "rundctl.pool.0"
    assert {"cpu", "cpuset", "io", "memory", "pids"} <= set(slot.read("cgroup.controllers").split())
    shim = launch(lease).running()
    assert sorted(slot.pids()) == sorted((shim.pid, shim.qemu_pid()))
    os.kill(shim.pid, signal.SIGKILL)
    shim.wait()
    rig.delete("c")
    assert (rig.status()["free"], rig.status()["leased"]) == (1, 0)
    assert slot.pids() == []


def test_a_dead_creator_s_slot_is_emptied_and_reclaimed(rig, launch):
    """No record names it: what runs in it is killed by cgroup.kill, forks and all."""
    rig.fill(1)
    lease = rig.lease("c")
    lease.make(lambda _: None)
    shim = launch(lease).running()
    rig.orphan(0)
    rig.reclaim()
    assert shim.wait() == -signal.SIGKILL
    assert (rig.status()["free"], rig.status()["leased"], rig.status()["orphaned"]) == (1, 0, 0)
    assert rig.create("d").kind == "pool"
    rig.delete("d")


def test_a_slot_that_saw_an_oom_is_removed_and_made_anew(rig, member):
    rig.fill(1)
    lease = rig.create("c")
    slot = slot_of(lease)
    limits = Limits()
    limits.memory = 32 << 20
    cgroup_settings.apply(lease.directories, limits)
    assert member(slot, *GREEDY, stderr=subprocess.DEVNULL).process.wait(60) == -signal.SIGKILL
    assert slot.flat("memory.events")["oom_kill"] == 1
    inode = slot.path.stat().st_ino
    assert "saw an OOM" in rig.delete("c")
    assert not slot.path.exists()
    rig.fill(1)
    slot = slot_of(rig.create("d"))
    assert slot.flat("memory.events")["oom_kill"] == 0
    assert slot.path.stat().st_ino != inode
    rig.delete("d")


def test_limits_of_one_tenant_are_not_the_next_one_s(rig):
    rig.fill(1)
    lease = rig.create("c")
    limits = Limits()
    limits.memory, limits.pids, limits.quota, limits.shares, limits.cpus = 64 << 20, 7, 50_000, 77, "1"
    cgroup_settings.apply(lease.directories, limits)
    rig.delete("c")
    slot = slot_of(rig.create("d"))
    assert {name: slot.read(name) for name in ("memory.max", "pids.max", "cpu.max", "cpu.weight", "cpuset.cpus")} == {
        "memory.max": "max", "pids.max": "max", "cpu.max": "max 100000", "cpu.weight": "100", "cpuset.cpus": "",
    }  # fmt: skip
    rig.delete("d")


def test_what_one_tenant_used_is_the_next_one_s_baseline(rig, member):
    rig.fill(1)
    slot = slot_of(rig.create("c"))
    burn = ["/usr/bin/python3", "-I", "-S", "-c", "sum(range(300000))"]
    assert member(slot, *burn).process.wait(60) == 0
    used = slot.flat("cpu.stat")["usage_usec"]
    assert used > 0
    outcome = rig.delete("c")
    if "removed" in outcome:  # it kept more charges than a slot may: then the next one is new, and has no baseline
        rig.fill(1)
        assert kinds.recorded(rig.create("d").facts()).baseline() == {}
    else:
        baseline = kinds.recorded(rig.create("d").facts()).baseline()
        assert int(baseline["cpu.stat"].split()[1]) >= used
        assert {"memory.peak", "memory.events", "pids.peak"} <= set(baseline)
    rig.delete("d")


def test_many_at_once_have_a_slot_each(rig, tmp_path):
    """Processes that lease at the same moment; each tells its slot and ends without giving it back."""
    rig.fill(20)
    go, starter = os.pipe()
    pids = []
    for number in range(20):
        pid = os.fork()
        if pid == 0:
            try:
                os.close(starter)
                os.read(go, 1)
                lease = rig.lease(f"c{number}")
                (tmp_path / f"told{number}").write_text(json.dumps(lease.directories))
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)
    os.close(starter)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 20
    os.close(go)
    told = {(tmp_path / f"told{number}").read_text() for number in range(20)}
    assert len(told) == 20
    assert all("rundctl.pool." in each for each in told)
    rig.reclaim()
    until(lambda: rig.status()["free"] == 20, "all are free again")
