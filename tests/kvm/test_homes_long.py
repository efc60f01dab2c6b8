"""RUNDCTL_HOME on file systems that lack what ext4 and XFS have. The machine's own are such: an overlay of Linux 6.1 and 9p have no files without a name."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import kvm_bed
import pytest

from rundctl.engine import settings

from ..system.conftest import RUNDCTL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..system.conftest import Cli

OVERLAY, NINE_P = "/var/home", f"{kvm_bed.RESULTS}/home"


@pytest.fixture
def home(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A home with kernel and QEMU, and no template yet."""
    made = Path(request.param)
    made.mkdir()
    for each in ("kernels", "qemu"):
        shutil.copytree(f"{settings.load().home}/{each}", made / each, symlinks=True)
    yield made
    shutil.rmtree(made)


def _has_nameless_files(directory: Path) -> bool:
    try:
        os.close(os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("home", [OVERLAY], indirect=True)
def test_an_overlay(cli: Cli, bundle: Callable[..., Path], home: Path) -> None:
    """As in a CI job that is a container."""
    assert not _has_nameless_files(home), "else this shows nothing"
    environment = {**os.environ, "RUNDCTL_HOME": str(home)}
    where = bundle("/bin/sh", "-c", "echo written > /file; cat /file")
    for number in range(2):
        done = cli("run", "--bundle", str(where), f"c{number}", env=environment)
        assert (done.stdout, done.stderr) == (b"written\n", b"")
    assert list(home.rglob(".nameless*")) == []
    assert "operation not supported" not in subprocess.check_output([RUNDCTL, "doctor"], env=environment, text=True)


@pytest.mark.parametrize("home", [NINE_P], indirect=True)
def test_a_file_system_that_does_not_map_files(cli: Cli, bundle: Callable[..., Path], home: Path) -> None:
    done = cli("run", "--bundle", str(bundle("/bin/true")), "c", code=1, env={**os.environ, "RUNDCTL_HOME": str(home)})
    (line,) = done.stderr.decode().splitlines()
    assert f"the file system of {home}/templates/" in line
    assert "does not map files that are written to" in line
    assert line.endswith("(RUNDCTL_HOME belongs on ext4, XFS, btrfs or tmpfs)")
