"""What several unit tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rundctl.host import cgroupfs
from rundctl.host.mounts import PrivateMounts

from . import cgroup_rig, hypothesis_profile
from .cgroup_fake import tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rundctl.host.cgroupfs import Hierarchy

hypothesis_profile.load()


@pytest.fixture
def private() -> Iterator[None]:
    """Mounts of the test are seen by nobody else, and gone with it."""
    with PrivateMounts():
        yield


@pytest.fixture
def home(tmp_path: Path) -> str:
    """A RUNDCTL_HOME that is not there yet."""
    return str(tmp_path / "home")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A small directory that its user declares immutable."""
    made = tmp_path / "rootfs"
    (made / "etc").mkdir(parents=True)
    (made / "etc/hostname").write_text("box\n")
    return made


@pytest.fixture(params=["fake", "real"])
def hierarchies(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Hierarchy]]:
    """The fake tree, then the kernel's, where this host has one to write to; what is below `cgroup_rig.PARENT` is removed afterwards."""
    found: list[Hierarchy] = [*tree(tmp_path / "tree")] if request.param == "fake" else cgroupfs.hierarchies()
    if not found:
        pytest.skip("no writable cgroup hierarchy is mounted")
    for hierarchy in found:
        cgroupfs.make(hierarchy, cgroup_rig.PARENT)
    yield found
    cgroup_rig.remove_all(found, cgroup_rig.PARENT)
