"""What cgroup v2 is and is not, by the kernel's own word: the facts that the pool's design stands on (docs/adr/0006-cgroup-pool.md)."""

import errno
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from groups import ROOT, until

CONTROLLERS = {"cpu", "cpuset", "hugetlb", "io", "memory", "pids"}
PYTHON = ["/usr/bin/python3", "-I", "-S", "-c"]


def refused(error, action, *arguments):
    with pytest.raises(OSError, match=rf"^\[Errno {getattr(errno, error)}\]"):
        action(*arguments)


def test_the_tree_has_all_controllers(group):
    assert set((ROOT / "cgroup.controllers").read_text().split()) >= CONTROLLERS
    assert set(group.read("cgroup.controllers").split()) >= CONTROLLERS
    assert group.read("cgroup.type") == "domain"


def test_a_child_has_what_its_parent_gives(group):
    child = group.child("c")
    assert child.read("cgroup.controllers") == ""
    assert not (child.path / "memory.max").exists()
    refused("ENOENT", child.give, "memory")
    group.give("memory", "pids")
    assert set(child.read("cgroup.controllers").split()) == {"memory", "pids"}
    assert child.read("memory.max") == "max"
    child.give("pids")
    refused("EBUSY", group.write, "cgroup.subtree_control", "-pids")
    refused("EINVAL", group.give, "no-such-controller")


def test_no_process_beside_children_with_controllers(group, member):
    """The no-internal-process rule, from both sides."""
    inside = member(group)
    group.child("c")
    refused("EBUSY", group.give, "memory")
    inside.end()
    group.give("memory")
    refused("EBUSY", group.write, "cgroup.procs", str(os.getpid()))


def test_the_rule_is_for_controllers_of_whole_processes(group, member):
    """pids, cpu and cpuset count threads and mind nobody; memory and io do."""
    group.child("c")
    group.give("pids", "cpu", "cpuset")
    member(group).end()
    group.give("io")
    refused("EBUSY", group.write, "cgroup.procs", "0")


def test_threads_need_a_threaded_parent(group, member):
    """A threaded cgroup has no memory controller: a slot is a domain, and stays one."""
    child = group.child("c")
    child.write("cgroup.type", "threaded")
    assert group.read("cgroup.type") == "domain threaded"
    assert child.read("cgroup.type") == "threaded"
    refused("EOPNOTSUPP", group.give, "memory")
    refused("EINVAL", child.write, "cgroup.type", "domain")


def test_rename_is_refused(group):
    """Version 1 can; here a slot keeps its name, and a record says whose it is."""
    child = group.child("slot")
    refused("EPERM", os.rename, child.path, group.path / "container")
    refused("EPERM", os.rename, child.path, ROOT / "elsewhere")
    assert child.path.exists()


def test_anybody_may_remove_an_empty_one_and_nobody_a_full_one(group, member):
    child = group.child("c")
    inside = member(child)
    refused("EBUSY", os.rmdir, child.path)
    inside.end()
    os.rmdir(child.path)
    parent = group.child("p")
    parent.child("c")
    refused("EBUSY", os.rmdir, parent.path)


def test_a_zombie_keeps_no_cgroup(group, member):
    child = group.child("c")
    inside = member(child)
    os.kill(inside.pid, signal.SIGKILL)
    os.waitid(os.P_PID, inside.pid, os.WEXITED | os.WNOWAIT)
    assert child.read("cgroup.events").startswith("populated 0")
    os.rmdir(child.path)


def test_a_descriptor_of_a_removed_one_is_dead(group):
    child = group.child("c")
    fd = os.open(child.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.rmdir(child.path)
        refused("ENOENT", os.open, f"/proc/self/fd/{fd}/cgroup.procs", os.O_WRONLY)
        group.child("c")  # the same name is another cgroup
        assert not os.path.samestat(os.fstat(fd), child.path.stat())
    finally:
        os.close(fd)


def test_kill_ends_everybody_below(group, member):
    child = group.child("c")
    script = "sleep 1000 & (sleep 1000 & exec sleep 1000) & wait"
    inside = member(group, "/bin/sh", "-c", script)
    deep = member(child)
    until(lambda: len(group.pids()) == 4, "all are there")
    group.write("cgroup.kill", "1")
    assert inside.process.wait(20) == -signal.SIGKILL
    assert deep.process.wait(20) == -signal.SIGKILL
    until(lambda: group.read("cgroup.events").startswith("populated 0"), "nobody is left")


def test_delegation_to_a_user_ends_where_the_limits_are(group):
    """cgroup-v2.rst, "Model of Delegation": the directory and the files of its tree, never what limits it."""
    group.give("pids", "memory")
    given = group.child("given")
    for name in ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
        os.chown(given.path / name, 1000, 1000)
    code = f"""
import os
os.setgid(1000); os.setuid(1000)
os.chdir({str(given.path)!r})
os.mkdir("mine")
open("cgroup.subtree_control", "w").write("+pids")
open("mine/pids.max", "w").write("5")
try:
    open("pids.max", "w").write("max")
except PermissionError:
    print("refused")
"""
    done = subprocess.run([*PYTHON, code], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
    assert (given.path / "mine/pids.max").read_text() == "5\n"


def test_counters_go_on_and_a_baseline_tells_a_lease_apart(group, member):
    """What a slot's last tenant used stays counted: memory.events, memory.peak, pids.peak and cpu.stat of the next one are differences."""
    group.give("memory", "pids", "cpu")
    slot = group.child("slot")
    burn = "x = bytearray(40 << 20); sum(range(300000))"
    for count in (1, 2):
        before = slot.flat("cpu.stat")["usage_usec"]
        assert member(slot, *PYTHON, burn).process.wait(60) == 0
        assert slot.flat("cpu.stat")["usage_usec"] > before, count
    assert int(slot.read("memory.peak")) >= 40 << 20
    assert int(slot.read("pids.peak")) >= 1
    for name in ("cpu.stat", "memory.events", "pids.peak"):
        refused("EINVAL", slot.write, name, "0")
    assert slot.pids() == []


def test_memory_s_peak_starts_anew_only_for_the_reader_that_asks(group):
    """From Linux 6.12 on a write starts it anew for that descriptor alone; before, it is refused. Either way it is no reset of the slot."""
    group.give("memory")
    slot = group.child("slot")
    if tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 12):
        slot.write("memory.peak", "reset")
    else:
        refused("EINVAL", slot.write, "memory.peak", "reset")


def test_an_oom_kill_is_counted_for_ever(group, member):
    group.give("memory")
    slot = group.child("slot")
    slot.write("memory.max", str(32 << 20))
    slot.write("memory.oom.group", "1")
    greedy = member(slot, *PYTHON, "x = bytearray(200 << 20)", stderr=subprocess.DEVNULL)
    assert greedy.process.wait(60) == -signal.SIGKILL
    events = slot.flat("memory.events")
    assert events["oom_kill"] >= 1
    assert events["oom"] >= 1
    slot.write("memory.max", "max")
    assert slot.flat("memory.events")["oom_kill"] == events["oom_kill"]


def test_pages_of_the_last_tenant_stay_charged(group, member):
    """Page cache of a file that lives: a slot is clean only if that was reclaimed, or it is made anew."""
    group.give("memory")
    slot = group.child("slot")
    path = f"/var/tmp/charged-{os.getpid()}"
    writer = member(slot, "/bin/dd", "if=/dev/zero", f"of={path}", "bs=1M", "count=8", stderr=subprocess.DEVNULL)
    try:
        assert writer.process.wait(60) == 0
        os.sync()
        charged = int(slot.read("memory.current"))
        assert charged >= 8 << 20
        with suppress(BlockingIOError):  # less than asked for was found
            slot.write("memory.reclaim", str(charged))
        assert int(slot.read("memory.current")) < charged / 4
    finally:
        Path(path).unlink()
