"""What the pool relies on of a hierarchy, held against the fake and, where this host has them, the kernel's own."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from rundctl.errors import HostError
from rundctl.host import cgroupfs
from rundctl.host.cgroupfs import Hierarchy

from .cgroup_rig import PARENT

if TYPE_CHECKING:
    from pathlib import Path


def of_v1(hierarchies: list[Hierarchy]) -> list[Hierarchy]:
    return [each for each in hierarchies if not each.is_v2]


def test_make_tells_what_was_not_there(hierarchies: list[Hierarchy]) -> None:
    for hierarchy in hierarchies:
        assert cgroupfs.make(hierarchy, f"{PARENT}/a/b") == [f"{PARENT}/a", f"{PARENT}/a/b"]
        assert cgroupfs.make(hierarchy, f"{PARENT}/a/b") == []
        assert hierarchy.exists(f"{PARENT}/a/b")
        assert hierarchy.children(f"{PARENT}/a") == ["b"]
        assert hierarchy.children(f"{PARENT}/none") == []


def test_a_new_cpuset_can_be_joined(hierarchies: list[Hierarchy]) -> None:
    for hierarchy in hierarchies:
        if "cpuset" in hierarchy.controllers:
            assert hierarchy.read(PARENT, "cpuset.cpus") == hierarchy.read("", "cpuset.cpus")


def test_a_cpuset_below_one_that_is_only_half_made_can_be_joined(hierarchies: list[Hierarchy]) -> None:
    """Between its mkdir and its settings another may use it already, and whoever makes it may be killed."""
    for hierarchy in hierarchies:
        if "cpuset" in hierarchy.controllers:
            hierarchy.mkdir(f"{PARENT}/half")
            assert hierarchy.is_v2 or hierarchy.read(f"{PARENT}/half", "cpuset.cpus") == ""
            cgroupfs.make(hierarchy, f"{PARENT}/half/a")
            for path in (f"{PARENT}/half", f"{PARENT}/half/a"):
                for name in cgroupfs.CPUSET_INHERITED:
                    assert hierarchy.read(path, name) == hierarchy.read("", name)


def test_a_cpuset_that_somebody_has_set_stays_as_it_is(hierarchies: list[Hierarchy]) -> None:
    for hierarchy in of_v1(hierarchies):
        if "cpuset" in hierarchy.controllers:
            cgroupfs.make(hierarchy, f"{PARENT}/pinned")
            hierarchy.write(f"{PARENT}/pinned", "cpuset.cpus", "0")
            cgroupfs.make(hierarchy, f"{PARENT}/pinned/a")
            assert hierarchy.read(f"{PARENT}/pinned", "cpuset.cpus") == "0"
            assert hierarchy.read(f"{PARENT}/pinned/a", "cpuset.cpus") == "0"


def test_rename_keeps_settings_and_mark(hierarchies: list[Hierarchy]) -> None:
    for hierarchy in of_v1(hierarchies):
        hierarchy.mkdir(f"{PARENT}/a")
        hierarchy.mark(f"{PARENT}/a", "7")
        hierarchy.write(f"{PARENT}/a", "notify_on_release", "1")
        hierarchy.rename(f"{PARENT}/a", f"{PARENT}/b")
        assert not hierarchy.exists(f"{PARENT}/a")
        assert hierarchy.marked(f"{PARENT}/b") == "7"
        assert hierarchy.read(f"{PARENT}/b", "notify_on_release") == "1"


def test_rename_replaces_nothing_and_stays_in_its_parent(hierarchies: list[Hierarchy]) -> None:
    for hierarchy in of_v1(hierarchies):
        for name in ("a", "b"):
            hierarchy.mkdir(f"{PARENT}/{name}")
        with pytest.raises(FileExistsError):
            hierarchy.rename(f"{PARENT}/a", f"{PARENT}/b")
        with pytest.raises(OSError, match=r"Input/output error"):
            hierarchy.rename(f"{PARENT}/a", f"{PARENT}/b/a")
        with pytest.raises(FileNotFoundError):
            hierarchy.rename(f"{PARENT}/none", f"{PARENT}/c")


def test_v2_knows_no_rename(hierarchies: list[Hierarchy]) -> None:
    for hierarchy in hierarchies:
        if hierarchy.is_v2:
            hierarchy.mkdir(f"{PARENT}/a")
            with pytest.raises(PermissionError):
                hierarchy.rename(f"{PARENT}/a", f"{PARENT}/b")


def test_marks(hierarchies: list[Hierarchy]) -> None:
    for hierarchy in hierarchies:
        assert hierarchy.marked(PARENT) is None
        assert hierarchy.marked(f"{PARENT}/none") is None


def test_who_has_members_or_children_is_not_removed(hierarchies: list[Hierarchy]) -> None:
    for hierarchy in hierarchies:
        cgroupfs.make(hierarchy, f"{PARENT}/a")
        with subprocess.Popen(["sleep", "10"]) as member:
            if hasattr(hierarchy, "set_members"):
                hierarchy.set_members(f"{PARENT}/a", member.pid)
            else:
                hierarchy.write(f"{PARENT}/a", "cgroup.procs", str(member.pid))
            assert hierarchy.processes(f"{PARENT}/a") == [member.pid]
            with pytest.raises(HostError, match="processes remain in it"):
                cgroupfs.remove(hierarchy, f"{PARENT}/a", timeout_s=0.05)
            member.kill()
        if hasattr(hierarchy, "set_members"):
            hierarchy.set_members(f"{PARENT}/a")
        cgroupfs.remove(hierarchy, f"{PARENT}/a")
        cgroupfs.remove(hierarchy, f"{PARENT}/a")
        assert hierarchy.processes(f"{PARENT}/a") == []
        hierarchy.mkdir(f"{PARENT}/a")
        hierarchy.mkdir(f"{PARENT}/a/b")
        with pytest.raises(HostError):
            cgroupfs.remove(hierarchy, f"{PARENT}/a", timeout_s=0.05)


def test_other_mounts_may_have_any_name(tmp_path: Path) -> None:
    """Any user can mount (FUSE) where a path has bytes that are no text."""
    table = tmp_path / "mountinfo"
    odd = b"\xe9\r\x85\xe2\x80\xa8 - nothing"
    table.write_bytes(
        b"30 20 0:27 / /home/caf" + odd.replace(b" ", b"\\040") + b" rw - fuse x rw\n"
        b"31 20 0:28 / /sys/fs/cgroup/cpu rw,nosuid - cgroup none rw,cpu\n"
        b"32 20 0:29 / /sys/fs/cgroup/pids ro,nosuid - cgroup none rw,pids\n"
        b"33 20 0:30 /a /sys/fs/cgroup/unified rw - cgroup2 none rw\n"
    )
    passed_over: list[str] = []
    (found,) = cgroupfs.hierarchies(str(table), passed_over)
    assert (found.directory, found.controllers, found.is_v2) == ("/sys/fs/cgroup/cpu", {"cpu"}, False)
    assert passed_over == [
        "/sys/fs/cgroup/pids is read-only", "/sys/fs/cgroup/unified is not the root of its hierarchy"
    ]  # fmt: skip
