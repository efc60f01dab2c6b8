"""Limits written to the files of either version: fakes that refuse what the kernel refuses, and the kernel itself."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rundctl.errors import HostError
from rundctl.host import cgroup_settings, cgroupfs
from rundctl.host.cgroup_settings import Limits, Setting

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
V1 = {
    "memory": {
        "memory.limit_in_bytes": "9223372036854771712",
        "memory.memsw.limit_in_bytes": "9223372036854771712",
        "memory.soft_limit_in_bytes": "9223372036854771712",
        "memory.swappiness": "60",
    },
    "cpu": {
        "cpu.shares": "1024",
        "cpu.cfs_quota_us": "-1",
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_burst_us": "0",
        "cpu.idle": "0",
    },
    "cpuset": {"cpuset.cpus": "0-1", "cpuset.mems": "0"},
    "blkio": {"blkio.bfq.weight": "100"},
}
V2 = {
    "": {
        "memory.max": "max",
        "memory.low": "0",
        "memory.swap.max": "max",
        "cpu.weight": "100",
        "cpu.max": "max 100000",
        "cpu.max.burst": "0",
        "cpu.idle": "0",
        "cpuset.cpus": "",
        "cpuset.mems": "",
        "pids.max": "max",
        "io.weight": "default 100",
        "io.max": "",
    }
}


class Fake:
    """A tree of one version, and a kernel that bounds one file by another as the real one does."""

    def __init__(self, root: Path, tree: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
        self.directories = []
        for controller, files in tree.items():
            directory = root / (controller or "unified")
            directory.mkdir()
            self.directories.append(str(directory))
            for name, text in files.items():
                (directory / name).write_text(text + "\n")
        self.root = root
        self.refused: set[str] = set()
        monkeypatch.setattr(cgroup_settings, "write", self.write)

    def __getitem__(self, name: str) -> str:
        (found,) = self.root.glob(f"*/{name}")
        return found.read_text().strip()

    def write(self, path: str, text: str) -> None:
        name = os.path.basename(path)
        if name in self.refused or not self._allowed(name, text):
            raise OSError(errno.EINVAL, "Invalid argument", path)
        Path(path).write_text(text + "\n")

    def _allowed(self, name: str, text: str) -> bool:
        if name == "memory.limit_in_bytes":
            return int(text) <= int(self["memory.memsw.limit_in_bytes"])
        if name == "memory.memsw.limit_in_bytes":
            return int(text) >= int(self["memory.limit_in_bytes"])
        if name == "cpu.cfs_burst_us":
            return int(text) <= max(int(self["cpu.cfs_quota_us"]), 0)
        if name == "cpu.max.burst":
            return int(text) == 0 or int(text) <= int(self["cpu.max"].replace("max", "0").split()[0])
        if name in ("cpu.shares", "cpu.weight"):
            return self["cpu.idle"] == "0"
        return True


@pytest.fixture
def v1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(tmp_path, V1, monkeypatch)


@pytest.fixture
def v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(tmp_path, V2, monkeypatch)


def _all() -> Limits:
    limits = Limits()
    limits.memory, limits.memory_swap, limits.reservation = 100 * MIB, 150 * MIB, 10 * MIB
    limits.shares, limits.quota, limits.period, limits.burst = 512, 50000, 200000, 1000
    limits.cpus, limits.mems, limits.io_weight, limits.swappiness = "0", "0", 500, 10
    return limits


def test_version_1(v1: Fake) -> None:
    cgroup_settings.apply(v1.directories, _all())
    assert v1["memory.limit_in_bytes"] == str(100 * MIB)
    assert v1["memory.memsw.limit_in_bytes"] == str(150 * MIB)
    assert v1["memory.soft_limit_in_bytes"] == str(10 * MIB)
    assert v1["memory.swappiness"] == "10"
    assert (v1["cpu.cfs_quota_us"], v1["cpu.cfs_period_us"], v1["cpu.cfs_burst_us"]) == ("50000", "200000", "1000")
    assert v1["cpu.shares"] == "512"
    assert v1["cpuset.cpus"] == "0"
    assert v1["blkio.bfq.weight"] == "500"


def test_version_2(v2: Fake) -> None:
    cgroup_settings.apply(v2.directories, _all())
    assert v2["memory.max"] == str(100 * MIB)
    assert v2["memory.swap.max"] == str(50 * MIB)
    assert v2["memory.low"] == str(10 * MIB)
    assert v2["cpu.max"] == "50000 200000"
    assert v2["cpu.max.burst"] == "1000"
    assert v2["cpu.weight"] == "20"
    assert v2["io.weight"] == "4950"


def test_what_bounds_another_may_come_in_any_order(v1: Fake) -> None:
    for memory, swap in ((50, 60), (500, 600), (10, 10), (1000, 1000)):
        limits = Limits()
        limits.memory, limits.memory_swap = memory * MIB, swap * MIB
        cgroup_settings.apply(v1.directories, limits)
        assert v1["memory.limit_in_bytes"] == str(memory * MIB)
        assert v1["memory.memsw.limit_in_bytes"] == str(swap * MIB)


def test_what_is_idle_has_no_shares(v1: Fake) -> None:
    limits = Limits()
    limits.shares, limits.idle = 512, 1
    cgroup_settings.apply(v1.directories, limits)
    assert (v1["cpu.shares"], v1["cpu.idle"]) == ("1024", "1")
    limits.idle = 0
    cgroup_settings.apply(v1.directories, limits)
    assert (v1["cpu.shares"], v1["cpu.idle"]) == ("512", "0")


@pytest.mark.parametrize("refused", ["cpu.cfs_quota_us", "cpuset.cpus", "memory.limit_in_bytes"])
def test_one_refused_takes_all_back(v1: Fake, refused: str) -> None:
    v1.refused = {refused}
    before = {name: v1[name] for files in V1.values() for name in files}
    with pytest.raises(HostError) as caught:
        cgroup_settings.apply(v1.directories, _all())
    assert refused in caught.value.message
    assert "invalid argument" in caught.value.message
    assert {name: v1[name] for files in V1.values() for name in files} == before


def test_what_cannot_be_taken_back_is_told(v1: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    written = cgroup_settings.write

    def write(path: str, text: str) -> None:
        written(path, text)
        v1.refused |= {os.path.basename(path), "cpuset.mems"}

    monkeypatch.setattr(cgroup_settings, "write", write)
    limits = Limits()
    limits.cpus, limits.mems = "0", "1"
    with pytest.raises(HostError, match=r"cpuset.mems: invalid argument; .*cpuset.cpus keeps 0$"):
        cgroup_settings.apply(v1.directories, limits)


def test_a_controller_that_is_not_there_is_named(v1: Fake) -> None:
    limits = Limits()
    limits.throttles = {("8:0", "rbps"): 5}
    with pytest.raises(HostError) as caught:
        cgroup_settings.apply(v1.directories, limits)
    assert "blkio.throttle.read_bps_device nor io.max" in caught.value.message
    assert "linux.resources.blockIO" in caught.value.message


def test_swappiness_and_no_swap_need_no_file(v2: Fake) -> None:
    Path(v2.directories[0], "memory.swap.max").unlink()
    limits = Limits()
    limits.memory, limits.memory_swap, limits.swappiness = MIB, MIB, 5
    cgroup_settings.apply(v2.directories, limits)
    limits.memory_swap = 2 * MIB
    with pytest.raises(HostError, match=r"memory\.swap"):
        cgroup_settings.apply(v2.directories, limits)


def test_the_file_that_counts_kills(v1: Fake, tmp_path: Path) -> None:
    assert cgroup_settings.open_oom_events(v1.directories) is None
    (tmp_path / "memory/memory.oom_control").write_text("oom_kill 0\n")
    fd = cgroup_settings.open_oom_events(v1.directories)
    assert fd is not None
    os.close(fd)


@pytest.fixture
def real() -> Iterator[list[str]]:
    name = f"/rundctl-settings-{os.getpid()}"
    hierarchies = cgroupfs.hierarchies()
    for hierarchy in hierarchies:
        cgroupfs.make(hierarchy, name)
    yield [hierarchy.directory + name for hierarchy in hierarchies]
    for hierarchy in hierarchies:
        cgroupfs.remove(hierarchy, name)


def test_the_kernel_takes_it(real: list[str]) -> None:
    limits = _all()
    cgroup_settings.apply(real, limits)
    wanted = cgroup_settings.changes(real, cgroup_settings.settings(limits))
    assert [(change.path, change.before) for change in wanted] == [(change.path, change.text) for change in wanted]
    limits.memory, limits.memory_swap, limits.burst, limits.quota = 300 * MIB, 310 * MIB, 90000, 100000
    cgroup_settings.apply(real, limits)
    limits.memory, limits.memory_swap, limits.burst, limits.quota = 30 * MIB, 31 * MIB, 0, 2000
    cgroup_settings.apply(real, limits)


def test_the_kernel_s_refusal_is_one_line(real: list[str]) -> None:
    with pytest.raises(HostError) as caught:
        cgroup_settings.perform(cgroup_settings.changes(real, [Setting("cpu.cpus", ("cpuset.cpus", "4000"))]))
    assert caught.value.message.startswith("write '4000' to /sys/fs/cgroup")
    assert "\n" not in caught.value.message
