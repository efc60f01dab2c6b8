"""Which templates are removed."""

from __future__ import annotations

import time

from rundctl.engine.template_prune import Limits, _doomed
from rundctl.engine.template_store import Entry

FAMILY = {"kernel": "k"}
DAY_S = 86400


def entry(
    key: str, *, days: float = 0, size_mib: int = 10, memory_mib: int = 128, kernel: str = "k", intact: bool = True
) -> Entry:
    shape = {"kernel": kernel, "memory_mib": memory_mib, "vcpus": 1}
    return Entry(key, {"shape": shape}, size_mib, time.time() - days * DAY_S, intact=intact)


def test_what_nothing_can_use_goes() -> None:
    entries = [entry("a"), entry("b", kernel="old"), entry("c", memory_mib=256), entry("d", intact=False)]
    assert _doomed(entries, FAMILY, Limits()) == ["b", "d"]
    assert _doomed(entries, None, Limits()) == ["a", "b", "c", "d"]
    assert _doomed(entries, FAMILY, Limits(everything=True)) == ["a", "b", "c", "d"]


def test_by_age() -> None:
    entries = [entry("a", days=3), entry("b", days=1)]
    assert _doomed(entries, FAMILY, Limits(unused_days=2)) == ["a"]


def test_by_size_the_least_recently_used_go_first() -> None:
    entries = [entry("a", days=2), entry("b", days=1), entry("c", days=3)]
    assert _doomed(entries, FAMILY, Limits(max_size_mib=20)) == ["c"]
    assert _doomed(entries, FAMILY, Limits(max_size_mib=0)) == ["a", "b", "c"]
