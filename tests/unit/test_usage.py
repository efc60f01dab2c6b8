"""What a container costs its host, on made-up hierarchies of both versions, and of this process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from rundctl.host import usage
from rundctl.host.cgroupfs import Hierarchy

if TYPE_CHECKING:
    from pathlib import Path


def _write(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)


def test_v1_with_controllers_apart_and_together(tmp_path: Path) -> None:
    _write(tmp_path / "a/x", cpuacct__usage="5000\n")
    _write(tmp_path / "b/y", memory__usage_in_bytes="7\n", memory__max_usage_in_bytes="9\n")
    hierarchies = [
        Hierarchy(str(tmp_path / "a"), frozenset(["cpu", "cpuacct"]), is_v2=False),
        Hierarchy(str(tmp_path / "b"), frozenset(["memory"]), is_v2=False),
        Hierarchy(str(tmp_path / "c"), frozenset(), is_v2=True),
    ]
    paths = {"cpu": "/x", "cpuacct": "/x", "memory": "/y", "": "/z"}
    assert usage.of_cgroups(paths, hierarchies, {}) == {"cpu": {"total": 5000}, "memory": {"usage": 7, "max": 9}}


def test_v2(tmp_path: Path) -> None:
    _write(tmp_path / "z", cpu__stat="usage_usec 3\nuser_usec 1\n", memory__current="7\n")
    hierarchies = [Hierarchy(str(tmp_path), frozenset(), is_v2=True)]
    assert usage.of_cgroups({"": "/z"}, hierarchies, {}) == {"cpu": {"total": 3000}, "memory": {"usage": 7}}


@pytest.mark.parametrize(("peak", "shown"), [(40, {}), (50, {}), (51, {"max": 51})])
def test_a_slot_s_former_container_does_not_count(tmp_path: Path, peak: int, shown: dict[str, int]) -> None:
    _write(tmp_path / "z", cpu__stat="usage_usec 3000\nuser_usec 1\n", memory__current="7\n", memory__peak=f"{peak}\n")
    hierarchies = [Hierarchy(str(tmp_path), frozenset(), is_v2=True)]
    before = {"cpu.stat": "usage_usec 2000\nuser_usec 1", "memory.peak": "50", "memory.stat": "anon 0"}
    found = usage.of_cgroups({"": "/z"}, hierarchies, before)
    assert found == {"cpu": {"total": 1_000_000}, "memory": {"usage": 7, **shown}}


@pytest.mark.parametrize("v1_first", [True, False])
def test_what_v2_had_is_not_taken_off_v1(tmp_path: Path, v1_first: bool) -> None:
    _write(tmp_path / "a/x", cpuacct__usage="5000\n")
    _write(tmp_path / "b/z", cpu__stat="usage_usec 3000\n")
    hierarchies = [
        Hierarchy(str(tmp_path / "a"), frozenset(["cpuacct"]), is_v2=False),
        Hierarchy(str(tmp_path / "b"), frozenset(), is_v2=True),
    ]
    found = usage.of_cgroups(
        {"cpuacct": "/x", "": "/z"}, hierarchies[:: 1 if v1_first else -1], {"cpu.stat": "usage_usec 2999"}
    )
    assert found == {"cpu": {"total": 5000}, "memory": {}}


def test_what_is_gone_is_left_out(tmp_path: Path) -> None:
    hierarchies = [
        Hierarchy(str(tmp_path), frozenset(["memory"]), is_v2=False),
        Hierarchy(str(tmp_path), frozenset(), is_v2=True),
    ]
    assert usage.of_cgroups({"memory": "/gone", "": "/gone"}, hierarchies, {}) == {"cpu": {}, "memory": {}}
    assert usage.of(2**22 - 1, hierarchies) == {"cpu": {}, "memory": {}, "processes": []}


def test_this_process() -> None:
    (own, *_) = usage.of(os.getpid())["processes"]
    assert own["pid"] == os.getpid()
    assert 0 < own["pss"] <= own["rss"]
    assert own["cpu"] > 0
