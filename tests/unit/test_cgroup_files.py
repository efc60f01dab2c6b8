"""The table of a cgroup's files, on a fake tree and, where the host has one, on the kernel's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rundctl.host import cgroup_files, cgroupfs

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS = {
    "memory.limit_in_bytes": "104857600",
    "memory.memsw.limit_in_bytes": "209715200",
    "memory.soft_limit_in_bytes": "52428800",
    "memory.swappiness": "10",
    "cpu.shares": "77",
    "cpu.cfs_quota_us": "20000",
    "cpu.cfs_period_us": "50000",
    "cpu.cfs_burst_us": "1000",
    "cpuset.cpus": "0",
    "cpuset.mems": "0",
    "blkio.bfq.weight": "300",
    "memory.max": "104857600",
    "memory.low": "1048576",
    "cpu.max": "20000 50000",
    "cpu.weight": "7",
    "pids.max": "5",
    "io.weight": "default 77",
    "notify_on_release": "1",
    "cgroup.clone_children": "1",
}


@pytest.mark.parametrize("is_v2", [False, True])
def test_files_are_named_once_and_have_a_default(is_v2: bool) -> None:
    files = [file for _, file, _ in cgroup_files.table(is_v2=is_v2)]
    assert len(files) == len(set(files))
    of_all = ("notify_on_release", "cgroup.clone_children")
    for controller, file, _ in cgroup_files.table(is_v2=is_v2):
        assert file.startswith(f"{controller}.") if controller else file in of_all


def test_a_line_a_device_is_taken_back(tmp_path: Path) -> None:
    (tmp_path / "io.max").write_text("8:0 rbps=1 wbps=max riops=max wiops=max\n")
    (tmp_path / "io.weight").write_text("default 300\n8:16 50\n")
    cgroup_files.reset(str(tmp_path), is_v2=True)  # a plain file keeps the last write
    assert (tmp_path / "io.max").read_text().startswith("8:0 rbps=max wbps=max riops=max wiops=max")
    assert (tmp_path / "io.weight").read_text().startswith("8:16 default")


def test_the_table_of_version_1_is_the_kernel_s(tmp_path: Path) -> None:
    (tmp_path / "blkio.bfq.weight_device").write_text("default 300\n")
    cgroup_files.reset(str(tmp_path), is_v2=False)
    assert (tmp_path / "blkio.bfq.weight_device").read_text() == "default 300\n"  # shows what another file has


@pytest.fixture
def real() -> Iterator[list[tuple[cgroupfs.Hierarchy, Path]]]:
    """A new cgroup in every hierarchy of this host."""
    name = f"/rundctl-test-{os.getpid()}"
    hierarchies = cgroupfs.hierarchies()
    for hierarchy in hierarchies:
        cgroupfs.make(hierarchy, name)
    places = [(hierarchy, Path(hierarchy.directory + name)) for hierarchy in hierarchies]
    yield places
    for hierarchy, _ in places:
        cgroupfs.remove(hierarchy, name)


def test_reset_is_what_a_new_cgroup_has(real: list[tuple[cgroupfs.Hierarchy, Path]]) -> None:
    changed = 0
    for hierarchy, directory in real:
        files = [file for _, file, _ in cgroup_files.table(is_v2=hierarchy.is_v2) if (directory / file).exists()]
        new = {file: (directory / file).read_text() for file in files}
        for file in (file for file in SETTINGS if file in files):
            cgroup_files.write(str(directory / file), SETTINGS[file])
        changed += sum((directory / file).read_text() != new[file] for file in files)
        cgroup_files.reset(str(directory), is_v2=hierarchy.is_v2)
        assert {file: (directory / file).read_text() for file in files} == new
    assert changed >= 6, "this host has no cgroup controllers to try it on"
