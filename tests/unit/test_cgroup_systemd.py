"""Names of systemd's scopes, and what is said where there is no systemd. The scopes themselves: tests/systemd."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rundctl.engine.cgroups import kinds, paths, scope
from rundctl.engine.cgroups.lease import Lease
from rundctl.errors import ConfigError, HostError
from rundctl.host import cgroup_settings, cgroupfs, systemd

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("slice_", "path"),
    [
        ("-.slice", "/"),
        ("system.slice", "/system.slice"),
        ("a-b.slice", "/a.slice/a-b.slice"),
        ("kubepods-burstable-pod1_2.slice", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice"),
    ],
)
def test_each_dash_of_a_slice_is_a_level(slice_: str, path: str) -> None:
    assert scope.expand(slice_) == path


@pytest.mark.parametrize(
    "slice_", ["", "a", ".slice", "-", "a-.slice", "-a.slice", "a--b.slice", "a/b.slice", "x.scope"]
)
def test_what_is_no_slice(slice_: str) -> None:
    with pytest.raises(ConfigError, match="invalid slice name"):
        scope.expand(slice_)


def test_without_a_hierarchy_there_is_no_scope() -> None:
    with pytest.raises(HostError, match="no writable cgroup hierarchy is mounted"):
        scope.lease([], "/system.slice/rundctl-c1.scope")


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        ("", "/system.slice/rundctl-c1.scope"),
        (":libpod:c", "/system.slice/libpod-c.scope"),
        ("machine.slice:libpod:c", "/machine.slice/libpod-c.scope"),
        ("a-b.slice:cri:c", "/a.slice/a-b.slice/cri-c.scope"),
        ("-.slice:x:c", "/x-c.scope"),
    ],
)
def test_the_path_of_a_scope(asked: str, path: str) -> None:
    assert scope.path_of(asked, "c1") == path


def test_containers_of_other_roots_have_other_scopes() -> None:
    assert scope.path_of("", "c1", "fe00-7") == "/system.slice/rundctl-c1.fe00-7.scope"


@pytest.mark.parametrize("asked", ["/a/b", "a.slice", "a.slice:b", "a.slice:b:c:d"])
def test_another_form_is_refused_in_runc_s_words(asked: str) -> None:
    expected = f'expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, got "{asked}" instead'
    with pytest.raises(ConfigError, match=expected):
        scope.path_of(asked, "c1")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("a.slice:b:", "name of a scope"),
        ("a.slice:b:x/y", "name of a scope"),
        ("a.slice:b:x.slice", "a scope"),
        ("a.slice:b:x+y", "name of a scope"),
        ("a.slice:b:" + "x" * 250, "name of a scope"),
    ],
)
def test_what_can_be_no_scope(asked: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        scope.path_of(asked, "c1")


def test_without_the_flag_the_form_means_nothing() -> None:
    assert paths.path_of("a.slice:b:c", "c1") == "/rundctl/a.slice:b:c"


def test_no_systemd_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "_RUNS", str(tmp_path / "nothing"))
    lease = scope.lease([cgroupfs.Hierarchy(str(tmp_path), frozenset(), is_v2=True)], "/system.slice/x-c.scope")
    with pytest.raises(HostError, match=r"^--systemd-cgroup: systemd is not running here") as caught:
        lease.make(lambda _: None)
    assert "podman: --cgroup-manager cgroupfs" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_scope_is_given_back_where_systemd_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record may outlive its boot: ROOT may be on disk."""
    monkeypatch.setattr(systemd, "_RUNS", str(tmp_path / "nothing"))
    (tmp_path / "system.slice/x-c.scope").mkdir(parents=True)
    lease = scope.lease([cgroupfs.Hierarchy(str(tmp_path), frozenset(), is_v2=True)], "/system.slice/x-c.scope")
    assert lease.facts()["places"] == [], "not ours before systemd has made it"
    kinds.recorded(Lease.facts(lease)).give_back()
    assert not (tmp_path / "system.slice/x-c.scope").exists()


def test_a_bus_that_does_not_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "_RUNS", str(tmp_path))
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/bus")
    with pytest.raises(HostError, match=f"connect to the system bus {tmp_path}/bus: is missing"):
        systemd.Manager()


def held(**fields: object) -> cgroup_settings.Limits:
    limits = cgroup_settings.Limits()
    for name, value in fields.items():
        setattr(limits, name, value)
    return limits


@pytest.mark.parametrize(
    ("fields", "v2", "v1"),
    [
        ({}, {}, {}),
        ({"memory": 1 << 20}, {"MemoryMax": 1 << 20}, {"MemoryLimit": 1 << 20}),
        (
            {"memory": -1, "memory_swap": -1},
            {"MemoryMax": 2**64 - 1, "MemorySwapMax": 2**64 - 1},
            {"MemoryLimit": 2**64 - 1},
        ),
        ({"memory": 5, "memory_swap": 7}, {"MemoryMax": 5, "MemorySwapMax": 2}, {"MemoryLimit": 5}),
        ({"shares": 1024}, {"CPUWeight": 39}, {"CPUShares": 1024}),
        ({"io_weight": 10}, {"IOWeight": 1}, {"BlockIOWeight": 10}),
        ({"quota": 33_333}, {"CPUQuotaPerSecUSec": 340_000}, {"CPUQuotaPerSecUSec": 340_000}),
        (
            {"quota": 50_000, "period": 200_000},
            {"CPUQuotaPerSecUSec": 250_000, "CPUQuotaPeriodUSec": 200_000},
            {"CPUQuotaPerSecUSec": 250_000, "CPUQuotaPeriodUSec": 200_000},
        ),
        ({"cpus": "0-2,9", "mems": "0"}, {"AllowedCPUs": b"\x07\x02", "AllowedMemoryNodes": b"\x01"}, {}),
        ({"pids": 7}, {"TasksMax": 7}, {"TasksMax": 7}),
    ],
)
def test_limits_as_systemd_has_them(fields: dict[str, object], v2: dict[str, object], v1: dict[str, object]) -> None:
    for expected, is_v2 in ((v2, True), (v1, False)):
        found = scope.properties(held(**fields), is_v2=is_v2)
        assert {name: value for name, (_, value) in found} == expected
