"""What several unit tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rundctl.host.mount_namespace import PrivateMounts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
