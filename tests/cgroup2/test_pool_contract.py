"""The pool's suites of tests/unit, on a kernel's v2 tree with all controllers: so the fake tree, which they run on as well, is held to what the kernel does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rundctl.host import cgroupfs

from ..unit import cgroup_rig, test_cgroup_contract, test_cgroup_pool

if TYPE_CHECKING:
    from collections.abc import Iterator

# With counters that only a fake can be told; test_pool.py has it with a kernel's own.
_NOT_HERE = "test_a_spoilt_slot_is_removed"
for _suite in (test_cgroup_contract, test_cgroup_pool):
    globals().update(
        {name: value for name, value in vars(_suite).items() if name.startswith("test_") and name != _NOT_HERE}
    )
rig = test_cgroup_pool.rig


@pytest.fixture
def hierarchies() -> Iterator[list[cgroupfs.Hierarchy]]:
    """The kernel's alone; what is below `cgroup_rig.PARENT` is removed afterwards."""
    found = cgroupfs.hierarchies()
    assert [each.is_v2 for each in found] == [True]
    cgroupfs.make(found[0], cgroup_rig.PARENT)
    yield found
    cgroup_rig.remove_all(found, cgroup_rig.PARENT)
