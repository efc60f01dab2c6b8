"""Control groups of version 2, with all controllers: these tests run in a VM of ours, where some process stands for a container's VM."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "native"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import inside
from groups import ROOT, Group, Member

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def pytest_configure(config: pytest.Config) -> None:
    """Reports of the VM in place of runs on the host."""
    inside.install(config, Path(__file__).resolve().parent)


@pytest.fixture
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    """A cgroup with all controllers; afterwards the whole tree is as it was."""
    before = sorted(directory for directory, _, _ in os.walk(ROOT))
    path = ROOT / f"test-{os.getpid()}"
    path.mkdir()
    made = Group(path)
    yield made
    made.remove()
    assert sorted(directory for directory, _, _ in os.walk(ROOT)) == before


@pytest.fixture
def member() -> Iterator[Callable[..., Member]]:
    """Start processes in cgroups: ``sleep``, or the command that is given."""
    started: list[Member] = []

    def start(group: Group, *argv: str, **options: object) -> Member:
        started.append(Member(group, list(argv) or ["/bin/sleep", "1000"], **options))
        return started[-1]

    yield start
    for each in started:
        each.end()
