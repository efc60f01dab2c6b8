"""--systemd-cgroup: the scope is systemd's, shim and VM (a program that sleeps) are born in it, and nothing of it is left."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from shim_rig import Shim, wait_for

from rundctl.engine.cgroups import kinds
from rundctl.engine.cgroups import scope as scopes
from rundctl.errors import HostError
from rundctl.host import cgroup_settings, cgroupfs, native, systemd
from rundctl.host.cgroup_settings import UNLIMITED, Limits

ROOT = Path("/sys/fs/cgroup")
NAME = f"c{os.getpid()}"


def show(unit, *properties):
    """systemd's own word, by its own tool."""
    names = [f"--property={name}" for name in properties]
    done = subprocess.run(["systemctl", "show", *names, unit], capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


@pytest.fixture
def scope():
    """Make scopes by ``linux.cgroupsPath``; those that are left are stopped."""
    made = []

    def make(cgroups_path, container_id=NAME):
        path = scopes.path_of(cgroups_path, container_id)
        lease = scopes.lease(cgroupfs.hierarchies(), path)
        made.append(lease)
        recorded = []
        lease.make(recorded.append)
        assert recorded == [lease.facts()]
        assert lease.facts()["places"] != []
        return lease

    yield make
    for lease in made:
        lease.joined()
        kinds.recorded(lease.facts()).give_back()


@pytest.fixture
def launch(tmp_path):
    shims = []

    def make(lease):
        directory = tmp_path / f"c{len(shims)}"
        directory.mkdir()
        v1, v2 = lease.join_descriptors()
        assert (v1, v2 is None) == ([], False)
        shim = Shim(native.program("shim"), directory, options=("--cgroup2", str(v2)), keep=(v2,))
        os.close(v2)
        shims.append(shim.started())
        lease.joined()
        return shim

    yield make
    for shim in shims:
        shim.end()


def test_shim_and_vm_are_born_in_a_scope(scope, launch):
    lease = scope(f"rundctl-test.slice:libpod:{NAME}")
    directory = ROOT / f"rundctl.slice/rundctl-test.slice/libpod-{NAME}.scope"
    assert lease.places[0].directory == str(directory)
    shim = launch(lease)
    qemu = shim.qemu_pid()
    assert sorted(map(int, (directory / "cgroup.procs").read_text().split())) == sorted((shim.pid, qemu))
    told = show(f"libpod-{NAME}.scope", "ActiveState", "Slice", "Delegate", "ControlGroup", "DefaultDependencies")
    assert told == {
        "ActiveState": "active",
        "Slice": "rundctl-test.slice",
        "Delegate": "yes",
        "ControlGroup": f"/rundctl.slice/rundctl-test.slice/libpod-{NAME}.scope",
        "DefaultDependencies": "no",
    }


def test_the_controllers_are_there(scope):
    lease = scope("")
    found = set((Path(lease.places[0].directory) / "cgroup.controllers").read_text().split())
    assert found >= {"cpu", "io", "memory", "pids"}
    assert lease.places[0].path == f"/system.slice/rundctl-{NAME}.scope"


def test_limits_are_systemd_s_too_and_survive_its_reload(scope, launch):
    """systemd writes what it knows of at a daemon-reload: what it was not told would be lost."""
    lease = scope("")
    launch(lease)
    limits = Limits()
    limits.memory, limits.memory_swap, limits.reservation = 256 << 20, 256 << 20, 64 << 20
    limits.shares, limits.quota, limits.period, limits.cpus = 1024, 50_000, 200_000, "1"
    cgroup_settings.apply(lease.directories, limits)
    files = ("memory.max", "memory.low", "cpu.weight", "cpu.max", "cpuset.cpus")
    directory = Path(lease.directories[0])
    before = {name: (directory / name).read_text() for name in files}
    kinds.recorded(lease.facts()).limited(limits)
    names = ("MemoryMax", "MemoryLow", "MemorySwapMax", "CPUWeight", "CPUQuotaPerSecUSec", "AllowedCPUs")
    assert show(f"rundctl-{NAME}.scope", *names) == {
        "MemoryMax": str(256 << 20), "MemoryLow": str(64 << 20), "MemorySwapMax": "0", "CPUWeight": "39",
        "CPUQuotaPerSecUSec": "250ms", "AllowedCPUs": "1",
    }  # fmt: skip
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    assert {name: (directory / name).read_text() for name in files} == before
    limits.memory = limits.memory_swap = UNLIMITED
    cgroup_settings.apply(lease.directories, limits)
    kinds.recorded(lease.facts()).limited(limits)
    assert show(f"rundctl-{NAME}.scope", "MemoryMax") == {"MemoryMax": "infinity"}
    assert (directory / "memory.max").read_text() == "max\n"


def test_systemd_ends_the_scope_with_its_last_process(scope, launch):
    lease = scope(f":rundctl:{NAME}")
    shim = launch(lease).running()
    shim.agent.exited(0)
    assert shim.wait() == 0
    wait_for(lambda: not Path(lease.places[0].directory).exists())
    kinds.recorded(lease.facts()).give_back()


def test_give_back_stops_what_is_left(scope, launch):
    lease = scope(f":rundctl:{NAME}")
    shim = launch(lease)
    kinds.recorded(lease.facts()).give_back()
    assert shim.wait() != 0
    assert not Path(lease.places[0].directory).exists()
    assert show(f"rundctl-{NAME}.scope", "LoadState", "ActiveState") == {
        "LoadState": "not-found",
        "ActiveState": "inactive",
    }
    kinds.recorded(lease.facts()).give_back()


def test_a_scope_in_use_is_told_and_left_alone(scope):
    lease = scope(f":rundctl:{NAME}")
    with pytest.raises(HostError, match=rf"^systemd: start rundctl-{NAME}.scope: .*already"):
        scope(f":rundctl:{NAME}")
    assert Path(lease.places[0].directory).exists()
    refused = scopes.lease(cgroupfs.hierarchies(), lease.places[0].path)
    with pytest.raises(HostError, match="already"):
        refused.make(pytest.fail)
    # As the undo of a refused create, and the delete of one that was killed before.
    kinds.recorded(refused.facts()).give_back()
    assert Path(lease.places[0].directory).exists(), "somebody else's"


def test_a_failed_scope_of_that_name_is_forgotten(scope):
    """Left by a crash: systemd keeps a failed unit, and would refuse its name for ever."""
    unit = f"rundctl-{NAME}.scope"
    subprocess.run(
        ["systemd-run", "--scope", f"--unit={unit}", "-p", "RuntimeMaxSec=1", "sleep", "1000"],
        capture_output=True,
        check=False,
    )
    wait_for(lambda: show(unit, "ActiveState")["ActiveState"] == "failed")
    lease = scope(f":rundctl:{NAME}")
    assert Path(lease.places[0].directory).exists()


def test_without_a_join_the_placeholder_ends_and_the_scope_with_it(scope):
    lease = scope(f":rundctl:{NAME}")
    directory = Path(lease.places[0].directory)
    assert len((directory / "cgroup.procs").read_text().split()) == 1
    lease.joined()
    wait_for(lambda: not directory.exists())


def test_a_killed_creator_leaves_nothing(tmp_path):
    """The placeholder waits at a pipe of its creator's: kill -9 ends both, and systemd the scope."""
    code = f"""
import time
from rundctl.engine.cgroups import scope
from rundctl.host import cgroupfs
lease = scope.lease(cgroupfs.hierarchies(), scope.path_of("", {NAME!r}))
lease.make(lambda facts: None)
print("made", flush=True)
time.sleep(1000)
"""
    creator = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    directory = ROOT / f"system.slice/rundctl-{NAME}.scope"
    try:
        assert creator.stdout.readline() == b"made\n"
        assert directory.exists()
    finally:
        creator.kill()
        creator.wait()
        creator.stdout.close()
    wait_for(lambda: not directory.exists())


def test_the_bus_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/dbus/nobody")
    with pytest.raises(HostError, match="connect to the system bus /run/dbus/nobody: is missing"):
        systemd.Manager()
