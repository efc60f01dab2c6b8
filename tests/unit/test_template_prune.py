"""Which templates are removed."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from rundctl.engine.settings import Settings
from rundctl.engine.template import builders, prune, store
from rundctl.engine.template.prune import Limits, _doomed, _family
from rundctl.engine.template.store import Entry
from rundctl.host import files
from rundctl.host import manifest as manifests
from rundctl.types import Accelerator
from rundctl.vmm.shape import MachineShape

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = MachineShape(
    qemu="q", qemu_version=(7, 2), machine="m", accelerator=Accelerator.TCG, memory_mib=1, vcpus=1, upper_mib=1, digests={}, host="k"
)  # fmt: skip
FAMILY = _family(SHAPE.facts())
DAY_S = 86400


def entry(
    key: str, *, days: float = 0, size_mib: int = 10, kernel: str = "k", intact: bool = True, **chosen: object
) -> Entry:
    """``chosen``: what its containers chose."""
    shape = {**SHAPE.facts(), "host": kernel, **chosen}
    return Entry(key, {"shape": shape}, size_mib, time.time() - days * DAY_S, intact=intact)


def test_what_nothing_can_use_goes() -> None:
    entries = [entry("a"), entry("b", kernel="old"), entry("c", memory_mib=256), entry("d", intact=False)]
    assert _doomed(entries, FAMILY, Limits()) == ["b", "d"]
    assert _doomed(entries, None, Limits()) == ["a", "b", "c", "d"]
    assert _doomed(entries, FAMILY, Limits(everything=True)) == ["a", "b", "c", "d"]


def test_what_a_container_can_choose_stays() -> None:
    """All that podman uses differ from the settings' own template: they have volumes."""
    chosen = [
        {"volumes": True},
        {"root_device": "pmem", "root_mib": 64},
        {"root_device": "blk", "root_mib": 512},
        {"root_device": "virtiofs"},
        {"root_device": "disk", "root_mib": 4096, "upper_mib": 0},
        {"memory_mib": 512, "vcpus": 2},
    ]
    entries = [entry(str(number), **shape) for number, shape in enumerate(chosen)]
    assert _doomed(entries, FAMILY, Limits()) == []
    other = [entry("a", upper_mib=2), entry("b", lower="disk", upper_mib=0, kernel="old")]
    assert _doomed(other, FAMILY, Limits()) == ["a", "b"]


def test_by_age() -> None:
    entries = [entry("a", days=3), entry("b", days=1)]
    assert _doomed(entries, FAMILY, Limits(unused_days=2)) == ["a"]


def test_by_size_the_least_recently_used_go_first() -> None:
    entries = [entry("a", days=2), entry("b", days=1), entry("c", days=3)]
    assert _doomed(entries, FAMILY, Limits(max_size_mib=20)) == ["c"]
    assert _doomed(entries, FAMILY, Limits(max_size_mib=0)) == ["a", "b", "c"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings whose present family is FAMILY, for a home of the test's own."""
    settings = Settings()
    settings.home = str(tmp_path)
    store.make_root(settings.home)
    monkeypatch.setattr(prune, "_current_family", lambda _: FAMILY)
    return settings


def _make_up(home: Settings, key: str, *, days: float, host: str = "k") -> None:
    directory = f"{store.root(home.home)}/{key}"
    os.mkdir(directory)
    store.make_directories(directory)
    described = {}
    for name in store.FILES:
        files.replace(f"{directory}/{name}", b"")
        described[name] = {"identity": manifests.file_identity(f"{directory}/{name}")}
    manifest = {"format": store.FORMAT, "shape": {**SHAPE.facts(), "host": host}, "files": described}
    files.replace(f"{directory}/manifest.json", json.dumps(manifest).encode())
    used = time.time() - days * DAY_S
    os.utime(f"{directory}/manifest.json", (used, used))


def _keys(home: Settings) -> list[str]:
    return [entry.key for entry in store.entries(home.home)]


def test_after_a_build_what_was_before_an_upgrade_goes_a_week_later(home: Settings) -> None:
    _make_up(home, "current", days=100)
    _make_up(home, "of_others", days=6, host="old")
    _make_up(home, "useless", days=8, host="old")
    prune.forget(home)
    assert _keys(home) == ["current", "of_others"]


def test_where_nothing_is_known_nothing_is_forgotten(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune, "_current_family", lambda _: None)
    _make_up(home, "useless", days=100, host="old")
    prune.forget(home)
    assert _keys(home) == ["useless"]


def test_what_is_being_built_is_not_removed(home: Settings) -> None:
    _make_up(home, "a", days=0)
    _make_up(home, "b", days=0)
    with builders.Builders(home.home, _quiet) as turns, turns.turn("a", "builds this template"):
        assert prune.prune(home, Limits(everything=True)) == ["b"]
    assert sorted(os.listdir(store.root(home.home))) == [".lock", "a"]


def test_who_mounts_something_over_the_templates_waits_for_builders(home: Settings) -> None:
    said: list[str] = []
    building = builders.Builders(home.home, _quiet)
    building.__enter__()

    def progress(line: str) -> None:
        said.append(line)
        building.__exit__()

    with builders.NoBuilders(home.home, progress):
        assert said == ["waiting for others, which build templates"]
    with builders.NoBuilders(home.home, said.append):
        assert len(said) == 1


def _quiet(_: str) -> None:
    """Nothing is told."""
