"""The pool on the fake tree and on the kernel's: leases, what is given back, what is mended."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rundctl.engine.cgroups import cgroup_pool, kinds, ownership, paths, refill, upkeep
from rundctl.engine.cgroups.ownership import Pool
from rundctl.errors import ConfigError, HostError, StateError
from rundctl.host import cgroupfs

from .cgroup_fake import tree
from .cgroup_rig import PARENT, Rig, files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rundctl.host.cgroupfs import Hierarchy

SETTINGS = {
    "memory.limit_in_bytes": "67108864", "cpu.shares": "77", "pids.max": "5", "notify_on_release": "1",
    "memory.max": "67108864", "cpu.weight": "77", "cpu.max": "50000 100000",
}  # fmt: skip


@pytest.fixture
def rig(hierarchies: list[Hierarchy], tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(hierarchies, tmp_path)
    yield rig
    if rig.pool.exists():
        rig.drain()
    assert rig.cgroups() == set()
    assert ownership.pools(rig.state) == []


def own_names(rig: Rig, number: int) -> set[tuple[str, str]]:
    return {(each.directory, f"rundctl.pool.{number}") for each in rig.hierarchies}


def test_fill_makes_slots_and_drain_removes_them(rig: Rig) -> None:
    rig.fill(3)
    assert rig.cgroups() == {name for number in range(3) for name in own_names(rig, number)}
    assert rig.status() == {"parent": PARENT, "open": True, "size": 3, "free": 3, "leased": 0, "orphaned": 0}
    rig.fill(3)
    assert len(rig.cgroups()) == 3 * len(rig.hierarchies)
    rig.drain()
    assert rig.cgroups() == set()
    assert upkeep.status(rig.state) == []


def test_fill_makes_parents_and_drain_removes_those_it_made(rig: Rig) -> None:
    deep = Rig(rig.hierarchies, rig.root.parent, f"{PARENT}/a/b")
    deep.fill(1)
    assert len(deep.cgroups()) == len(rig.hierarchies)
    deep.drain()
    assert rig.cgroups() == set()


@pytest.mark.parametrize(
    ("asked", "path"),
    [("", "/rundctl/c1"), ("a", "/rundctl/a"), ("/a/b", "/a/b"), ("//a/./b/", "/a/b"), ("./a", "/rundctl/a"), ("/rundctl/x", "/rundctl/x")],
)  # fmt: skip
def test_the_path_that_is_asked_for(asked: str, path: str) -> None:
    assert paths.path_of(asked, "c1") == path


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("/", "leaves"), ("//", "leaves"), ("/.", "leaves"), ("/./", "leaves"), ("../a", "leaves"), ("/a/..", "leaves"), ("/a\0b", "leaves"),
        (".", "other containers are in /rundctl"), ("./", "other containers"), ("/rundctl", "other containers"), ("//rundctl/.", "other containers"),
        ("rundctl.pool.3", "slots of pools"), ("/a/rundctl.pool.0/b", "slots of pools"),
    ],
)  # fmt: skip
def test_a_path_that_no_container_can_have(asked: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        paths.path_of(asked, "c1")


def test_without_a_pool_cgroups_are_made_on_the_spot(rig: Rig) -> None:
    lease = rig.create("c")
    assert lease.facts()["kind"] == "plain"
    assert lease.describe() == f"made on the spot: {PARENT} has no pool"
    assert rig.cgroups() == {(each.directory, "c") for each in rig.hierarchies}
    rig.delete("c")


def test_a_lease_has_the_requested_name_and_goes_back(rig: Rig) -> None:
    rig.fill(1)
    lease = rig.create("c")
    assert lease.describe() == "slot 0 of the pool"
    for place in rig.places("c"):
        assert place.path == (f"{PARENT}/rundctl.pool.0" if place.hierarchy.is_v2 else f"{PARENT}/c")
        assert place.hierarchy.exists(place.path)
    assert len(rig.cgroups()) == len(rig.hierarchies)
    assert (rig.status()["free"], rig.status()["leased"]) == (0, 1)
    assert rig.create("d").describe() == f"made on the spot: the pool of {PARENT} is empty"
    assert rig.delete("c") == "slot 0 is returned"
    assert rig.delete("d") == ""
    assert rig.cgroups() == own_names(rig, 0)
    assert (rig.status()["free"], rig.status()["leased"]) == (1, 0)


def test_what_is_returned_is_as_good_as_new(rig: Rig) -> None:
    rig.fill(1)
    new = {each.directory: files(each, f"{PARENT}/rundctl.pool.0") for each in rig.hierarchies}
    rig.create("c")
    written = 0
    for place in rig.places("c"):
        for name, text in SETTINGS.items():
            if Path(place.directory, name).exists():
                place.hierarchy.write(place.path, name, text)
                written += 1
        place.hierarchy.mkdir(f"{place.path}/child")
    assert written > 3
    rig.delete("c")
    assert rig.status()["free"] == 1
    for hierarchy in rig.hierarchies:
        assert (
            set(files(hierarchy, f"{PARENT}/rundctl.pool.0").items()) ^ set(new[hierarchy.directory].items()) == set()
        )
    assert all(each.children(f"{PARENT}/rundctl.pool.0") == [] for each in rig.hierarchies)


def test_more_than_its_size_is_removed(rig: Rig) -> None:
    rig.fill(2)
    rig.create("c")
    rig.fill(2)
    assert rig.status()["free"] == 2
    rig.delete("c")
    assert rig.status()["free"] == 2
    assert len(rig.cgroups()) == 2 * len(rig.hierarchies)


def test_what_is_leased_when_the_pool_is_drained_goes_with_its_container(rig: Rig) -> None:
    rig.fill(2)
    rig.create("c")
    rig.drain()
    assert rig.status() == {"parent": PARENT, "open": False, "size": 0, "free": 0, "leased": 1, "orphaned": 0}
    assert rig.create("d").describe() == f"made on the spot: {PARENT} has no pool"
    rig.delete("c")
    rig.delete("d")
    assert rig.cgroups() == set()
    assert upkeep.status(rig.state) == []


def test_a_name_in_use_is_joined_and_the_slot_returned(rig: Rig) -> None:
    rig.fill(1)
    for hierarchy in rig.hierarchies[-1:]:
        cgroupfs.make(hierarchy, f"{PARENT}/c")
    lease = rig.create("c")
    assert rig.facts("c")["kind"] == "plain"
    assert lease.describe() == f"made on the spot: there is a cgroup {PARENT}/c already"
    assert rig.cgroups() == {*own_names(rig, 0), *((each.directory, "c") for each in rig.hierarchies)}
    assert rig.status()["free"] == 1
    rig.delete("c")


def test_a_slot_that_somebody_removed_is_made_on_the_spot(rig: Rig) -> None:
    rig.fill(1)
    for hierarchy in rig.hierarchies[::2]:
        hierarchy.rmdir(f"{PARENT}/rundctl.pool.0")
    rig.create("c")
    assert all(place.hierarchy.exists(place.path) for place in rig.places("c"))
    rig.delete("c")
    assert rig.cgroups() == own_names(rig, 0)


def test_a_slot_that_somebody_removed_is_remade_by_fill(rig: Rig) -> None:
    rig.fill(2)
    rig.hierarchies[0].rmdir(f"{PARENT}/rundctl.pool.1")
    rig.fill(2)
    assert rig.cgroups() == own_names(rig, 0) | own_names(rig, 1)
    assert rig.said == ["slot 1 is made again: somebody has removed it"]


def test_given_back_twice_is_given_back_once(rig: Rig) -> None:
    rig.fill(1)
    rig.create("c")
    rig.give_back("c")
    rig.give_back("c")
    assert rig.status()["free"] == 1
    rig.create("d")
    rig.give_back("c")
    assert (rig.status()["free"], rig.status()["leased"]) == (0, 1)
    assert all(place.hierarchy.exists(place.path) for place in rig.places("d"))
    rig.forget("c")
    rig.delete("d")
    assert rig.status()["free"] == 1


def test_members_keep_a_slot_from_being_returned(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rundctl.engine.cgroups.slot.EMPTY_TIMEOUT_S", 0.05)
    rig.fill(1)
    rig.create("c")
    with subprocess.Popen(["sleep", "100"]) as member:
        put(rig.places("c"), member.pid)
        with pytest.raises(HostError, match="processes remain in it"):
            rig.give_back("c")
        member.kill()
    put(rig.places("c"))
    rig.delete("c")
    assert rig.status()["free"] == 1


def put(places: list[cgroupfs.Place], *pids: int) -> None:
    """Make a process a member; on the fake tree also take all out again."""
    for place in places:
        if hasattr(place.hierarchy, "set_members"):
            place.hierarchy.set_members(place.path, *pids)
        elif pids:
            place.hierarchy.write(place.path, "cgroup.procs", str(pids[0]))


@pytest.mark.parametrize("with_record", [False, True])
def test_an_orphan_is_killed_and_reclaimed_a_container_is_not(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, with_record: bool
) -> None:
    rig.fill(1)
    lease = rig.create("c")
    number, text = lease.facts()["slot"], lease.facts()["lease"]
    rig.orphan(number, str(rig.root / "c"))
    facts = {**rig.facts("c"), "lease": rig.pool.text(number)}
    if with_record:
        rig.claim("c", facts)
    killed: list[int] = []
    with subprocess.Popen(["sleep", "100"]) as member:
        places = rig.places("c")
        put(places, member.pid)
        monkeypatch.setattr(
            "rundctl.host.pidfd.Process.kill",
            lambda process: killed.append(process.pid) or member.kill() or put(places),
        )
        before = rig.cgroups()
        rig.reclaim()
        if with_record:
            assert killed == []
            assert rig.cgroups() == before
            assert rig.status()["leased"] == 1
            member.kill()
        member.wait(10)
    put(rig.places("c")) if with_record else None
    if not with_record:
        assert rig.cgroups() == own_names(rig, 0)
        assert rig.said == ["slot 0 is reclaimed: its owner is dead"]
    rig.give_back("c")
    assert rig.status()["free"] == 1
    assert rig.pool.text(number) != text


@pytest.mark.parametrize("text", ["{", None], ids=["damaged", "not believed"])
def test_a_record_that_cannot_be_read_may_name_the_slot(rig: Rig, text: str | None) -> None:
    rig.fill(1)
    rig.create("c")
    rig.orphan(0, str(rig.root / "c"))
    if text is None:
        (rig.root / "c").chmod(0o777)
    else:
        (rig.root / "c/record.json").write_text(text)
    assert rig.status()["orphaned"] == 0
    rig.fill(2)
    assert rig.status()["leased"] == 1
    rig.forget("c")
    assert rig.status()["orphaned"] == 1


def test_slots_that_no_file_knows_of_are_found(rig: Rig) -> None:
    rig.fill(2)
    directory = Path(rig.pool.directory)
    (directory / "free/1").unlink()
    rig.fill(2)
    assert rig.said == ["slot 1 is reclaimed: nobody knew of it"]
    assert rig.cgroups() == own_names(rig, 0) | own_names(rig, 1)


def test_a_stale_hint_is_passed_over(rig: Rig) -> None:
    rig.fill(1)
    real = rig.pool.free()
    pool = rig.pool

    class Stale(ownership.Pool):
        def free(self) -> list[int]:
            return [41, 42, *real]

    taken = cgroup_pool.take_ready(Stale(pool.directory), str(rig.root / "c"))
    assert taken is not None
    assert taken[0] == 0
    assert pool.leased() == [0]
    pool.drop(0)
    rig.reclaim()


@pytest.mark.parametrize("spoil", ["oom", "charges", "devices"])
def test_a_spoilt_slot_is_removed(rig: Rig, spoil: str) -> None:
    if not hasattr(rig.hierarchies[0], "set_members"):
        pytest.skip("only the fake tree can be told what its counters are: tests/system/test_pool.py does it for real")
    rig.fill(1)
    rig.create("c")
    for place in rig.places("c"):
        if "memory" in place.hierarchy.controllers and spoil == "oom":
            Path(place.directory, "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
        if "memory" in place.hierarchy.controllers and spoil == "charges":
            Path(place.directory, "memory.usage_in_bytes").write_text(f"{2 << 20}\n")
        if "devices" in place.hierarchy.controllers and spoil == "devices":
            Path(place.directory, "devices.list").write_text("c 1:3 rwm\n")
            Path(place.directory, "devices.allow").write_text("")
    words = {"oom": "saw an OOM", "charges": "keeps 2048 KiB of charges", "devices": "list of devices"}
    assert words[spoil] in rig.delete("c")
    assert rig.cgroups() == set()
    assert rig.status()["free"] == 0


def test_counters_that_cannot_be_reset_are_the_next_one_s_baseline(rig: Rig) -> None:
    rig.fill(1)
    assert kinds.recorded(rig.create("c").facts()).baseline() == {}
    rig.delete("c")
    baseline = kinds.recorded(rig.create("d").facts()).baseline()
    assert "cpu.stat" in baseline
    rig.delete("d")


def test_a_pool_of_an_earlier_boot_is_none(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.fill(1)
    rig.create("c")
    facts = rig.facts("c")
    monkeypatch.setattr(ownership, "boot_id", lambda: "another")
    assert rig.create("d").describe() == f"made on the spot: {PARENT} has no pool"
    assert kinds.recorded(facts, rig.kind).give_back() == ""
    rig.delete("d")
    rig.fill(1)
    assert os.listdir(rig.state) == ["another"]
    rig.drain()


def test_parents_that_cannot_be(tmp_path: Path) -> None:
    for text, words in (
        ("relative", "expected an absolute path"),
        ("/a/../b", "expected an absolute"),
        ("/" + "x" * 300, "too long"),
    ):
        with pytest.raises(ConfigError, match=words):
            upkeep.checked_parent(text)
    with pytest.raises(StateError, match="/none has no pool"):
        upkeep.drain([], "/none", print, str(tmp_path))
    with pytest.raises(HostError, match="no writable cgroup hierarchy"):
        upkeep.fill([], "/none", 1, print, str(tmp_path))


@pytest.mark.parametrize("parent", ["/", "/rundctl", "/a%2Fb/c", "/kubepods/burstable/pod-1"])
def test_parents_are_names_of_files(parent: str) -> None:
    assert "/" not in ownership.encode(parent)
    assert ownership.decode(ownership.encode(parent)) == parent


def test_status_is_json(rig: Rig) -> None:
    rig.fill(1)
    assert json.loads(json.dumps(rig.status()))["free"] == 1


def test_a_full_run_costs_a_slot_and_no_deletion(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.fill(1)
    rig.create("a")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Pool, "hint", full)
        assert "is removed: " in rig.delete("a")
    assert (rig.status()["free"], rig.status()["leased"]) == (0, 0)
    assert rig.cgroups() == set()


def test_a_parent_too_long_for_a_pool_is_no_error_of_the_deletion(tmp_path: Path) -> None:
    facts = {"kind": "plain", "places": [["/sys/fs/cgroup", "", f"{'/a' * 100}/c"]]}
    upkeep.fill(tree(tmp_path / "tree"), "/p", 1, print, str(tmp_path / "state"))
    assert "file name too long" in refill.after(facts, str(tmp_path / "state"), wanted=lambda: True).lower()


def test_an_id_that_is_a_slot_s_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"container id rundctl\.pool\.0: "):
        paths.path_of("", "rundctl.pool.0")
    assert paths.path_of("/a/b", "rundctl.pool.0") == "/a/b"


def test_a_record_of_another_version_is_told() -> None:
    with pytest.raises(StateError, match="cgroups of an unknown kind, 'moon'"):
        kinds.recorded({"kind": "moon", "places": []})
