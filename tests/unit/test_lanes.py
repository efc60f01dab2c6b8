"""Which tests run beside which."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import lanes


@pytest.mark.parametrize(
    ("test", "part"),
    [
        ("tests/system/test_pool.py::test_a[b::c]", "tests/system"),
        ("tests/system/test_stress.py::test_a", "tests/system"),
        ("tests/system/test_verbs.py::test_a", "tests/system/test_verbs.py"),
        ("tests/cgroup2/test_pool.py::test_a", "tests/cgroup2"),
        ("tests/kvm/test_ends.py::test_a", "tests/kvm"),
        ("tests/unit/test_plan.py::TestIt::test_a", "tests/unit/test_plan.py"),
    ],
)
def test_parts(test: str, part: str) -> None:
    assert lanes.part_of(test) == part


def test_what_is_named_is_there(checkout: Path) -> None:
    """A suite that got another name would run one after the other with all, and nobody would notice."""
    assert [name for name in lanes._ORDER if not (checkout / name).exists()] == []
    assert {path.parent.name for path in (checkout / "tests").glob("*/test_*.py")} - {"rebuild"} == {
        Path(name).name for name in lanes._ORDER if not name.endswith(".py")
    }
