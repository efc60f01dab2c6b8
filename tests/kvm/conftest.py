"""KVM itself: these tests run in an emulated machine in which it works (kvm_bed.py), all in one; those that are marked `outside` boot machines of their own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import inside
import kvm_bed

from rundctl.engine import settings

from ..system.conftest import bundle, cli, configure, example, nothing_left, rootfs, settle, sh, spec, template

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..system.conftest import Cli

__all__ = ["bundle", "cli", "configure", "example", "nothing_left", "rootfs", "settle", "sh", "spec", "template"]


def pytest_configure(config: pytest.Config) -> None:
    """Reports of the machine in place of runs on the host."""
    inside.install(config, Path(__file__).resolve().parent, inside.run_with_kvm)


@pytest.fixture(autouse=True)
def machines_can_be(request: pytest.FixtureRequest) -> None:
    """Those that boot machines of their own are skipped, too."""
    if request.node.get_closest_marker(inside.OUTSIDE) and (lacking := kvm_bed.missing()):
        pytest.skip(lacking)


@pytest.fixture(autouse=True)
def all_is_kvm(request: pytest.FixtureRequest) -> Iterator[None]:
    """A clone runs as its template was made: none of them is of another accelerator. `rundctl` would fall back and say so in a word."""
    yield
    if inside.INSIDE and "cli" in request.fixturenames:
        manifests = Path(settings.load().home).glob("templates/*/manifest.json")
        made = {path.parent.name: json.loads(path.read_text())["accelerator"] for path in manifests}
        assert made
        assert {key: said for key, said in made.items() if said["name"] != "kvm"} == {}


def qemu_below(shim: int) -> psutil.Process:
    """A shim's QEMU, which has a VM of KVM's: the kernel says so."""
    qemu = next(child for child in psutil.Process(shim).children() if "qemu" in child.name())
    descriptors = [os.readlink(link) for link in Path(f"/proc/{qemu.pid}/fd").iterdir() if link.is_symlink()]
    assert "anon_inode:kvm-vm" in descriptors, descriptors
    return qemu


def qemu_of(command: Cli, container: str) -> psutil.Process:
    """That of a container."""
    return qemu_below(command.state(container)["pid"])
