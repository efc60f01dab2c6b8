"""Which templates are removed."""

from __future__ import annotations

import time

from rundctl.engine.template.prune import Limits, _doomed, _family
from rundctl.engine.template.store import Entry
from rundctl.types import Accelerator
from rundctl.vmm.shape import MachineShape

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
