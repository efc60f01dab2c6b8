"""The real launcher and shim in cgroups of version 2: born inside by clone3(CLONE_INTO_CGROUP); a program that sleeps stands for QEMU."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from groups import ROOT, Group, until
from shim_rig import Shim

from rundctl.errors import GuestError, HostError
from rundctl.host import cgroupfs, native

TREE = cgroupfs.Hierarchy(str(ROOT), frozenset(), is_v2=True)


@pytest.fixture
def launch(tmp_path):
    shims = []

    def make(group, *, wait=True, **arguments):
        directory = tmp_path / f"c{len(shims)}"
        directory.mkdir()
        fd = os.open(group.path, os.O_RDONLY | os.O_DIRECTORY)
        shim = Shim(
            native.program("shim"),
            directory,
            options=("--cgroup2", str(fd), *arguments.pop("options", ())),
            keep=(fd,),
            **arguments,
        )
        os.close(fd)
        shims.append(shim)
        return shim.started() if wait else shim

    yield make
    for shim in shims:
        shim.end()


def where(pid):
    (line,) = (line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::"))
    return ROOT / line.partition("::")[2].lstrip("/")


def test_shim_and_vm_are_born_inside(group, launch):
    group.give("memory", "pids", "cpu", "io", "cpuset")
    slot = group.child("slot")
    shim = launch(slot)
    qemu = shim.qemu_pid()
    assert where(shim.pid) == where(qemu) == slot.path
    assert slot.pids() == sorted((shim.pid, qemu))
    assert int(slot.read("pids.peak")) == 2, "the launcher never was in it"
    assert int(slot.read("memory.current")) > 0
    joined = ["nsenter", f"--cgroup=/proc/{shim.pid}/ns/cgroup", "cat", f"/proc/{shim.pid}/cgroup"]
    assert "0::/\n" in subprocess.run(joined, capture_output=True, text=True, check=True).stdout, "the slot is its root"


@pytest.mark.parametrize("victim", ["shim", "qemu"])
def test_kill_9_leaves_an_empty_slot(group, launch, victim):
    group.give("memory", "pids")
    slot = group.child("slot")
    shim = launch(slot).running()
    os.kill(shim.pid if victim == "shim" else shim.qemu_pid(), signal.SIGKILL)
    shim.wait()
    until(lambda: "populated 0" in slot.read("cgroup.events"), "nobody is left")
    cgroupfs.remove(TREE, f"/{group.path.name}/slot")
    assert not slot.path.exists()


def test_cgroup_kill_ends_shim_and_vm_at_once(group, launch):
    """How a dead owner's slot is emptied: it cannot be evaded by forking."""
    slot = group.child("slot")
    shim = launch(slot).running()
    slot.write("cgroup.kill", "1")
    assert shim.wait() == -signal.SIGKILL
    until(lambda: slot.pids() == [], "nobody is left")


def test_a_cgroup_that_is_gone_is_told(group, launch):
    slot = group.child("slot")
    fd = os.open(slot.path, os.O_RDONLY | os.O_DIRECTORY)
    slot.path.rmdir()

    class Gone:
        path = f"/proc/self/fd/{fd}"

    shim = launch(Gone, wait=False)
    os.close(fd)
    with pytest.raises(GuestError, match="launch: clone into the cgroup: No such device"):
        shim.channel.wait(1, 10)


def test_a_cgroup_that_gives_controllers_is_told(group, launch):
    group.child("c")
    group.give("memory")
    shim = launch(group, wait=False)
    with pytest.raises(GuestError, match="launch: clone into the cgroup: Device or resource busy"):
        shim.channel.wait(1, 10)


def test_a_full_cgroup_is_told(group, launch):
    group.give("pids")
    slot = group.child("slot")
    slot.write("pids.max", "0")
    shim = launch(slot, wait=False)
    with pytest.raises(GuestError, match="launch: clone into the cgroup: Resource temporarily unavailable"):
        shim.channel.wait(1, 10)
    assert slot.flat("pids.events")["max"] == 1


def test_make_gives_controllers_on_the_way_down(group):
    path = f"/{group.path.name}/a/b"
    cgroupfs.make(TREE, path)
    made = Group(ROOT / path[1:])
    assert set(made.read("cgroup.controllers").split()) >= set(cgroupfs.CONTROLLERS)
    cgroupfs.remove(TREE, path)
    cgroupfs.remove(TREE, path)
    assert not made.path.exists()


def test_made_where_a_process_is(group, member):
    """A parent with processes of its own cannot give controllers: the cgroup is made without, as runc makes it."""
    member(group)
    cgroupfs.make(TREE, f"/{group.path.name}/c")
    assert (group.path / "c").is_dir()


def test_made_below_a_threaded_one(group):
    """A child of a threaded domain is invalid until it is threaded itself."""
    group.child("t").write("cgroup.type", "threaded")
    cgroupfs.make(TREE, f"/{group.path.name}/c")
    assert Group(group.path / "c").read("cgroup.type") == "threaded"


def test_the_tree_is_found():
    (tree,) = (tree for tree in cgroupfs.hierarchies() if tree.is_v2)
    assert tree.directory == str(ROOT)


def test_one_that_stays_full_is_told(group, member):
    slot = group.child("slot")
    member(slot)
    with pytest.raises(HostError, match="processes remain in it"):
        cgroupfs.remove(TREE, f"/{group.path.name}/slot", 0.1)
