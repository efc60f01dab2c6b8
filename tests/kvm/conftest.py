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

from ..system import under_kvm
from ..system.conftest import bundle, cli, configure, example, nothing_left, rootfs, settle, sh, spec, template
from .machines import make_rootfs, privileged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from ..system.conftest import Cli

__all__ = ["bundle", "cli", "configure", "example", "nothing_left", "rootfs", "settle", "sh", "spec", "template"]


def _left_out(nodeid: str) -> str:
    return "make test-kvm runs it" if "_long.py" in nodeid and not under_kvm.ASKED_FOR else ""


def pytest_configure(config: pytest.Config) -> None:
    """Reports of the machine in place of runs on the host."""
    inside.install(config, Path(__file__).resolve().parent, inside.run_with_kvm, left_out=_left_out)


@pytest.fixture(autouse=True)
def machines_can_be(request: pytest.FixtureRequest) -> None:
    """Those that boot machines of their own are skipped, too."""
    if request.node.get_closest_marker(inside.OUTSIDE) and (
        lacking := _left_out(request.node.nodeid) or kvm_bed.missing()
    ):
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


@pytest.fixture(scope="session")
def machine_rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system with machine.c's program."""
    return make_rootfs(tmp_path_factory.mktemp("machine"))


@pytest.fixture
def probe(bundle: Callable[..., Path], machine_rootfs: Path) -> Callable[..., Path]:
    """A bundle with machine.c's program; ``change`` edits its config further."""

    def make(*args: str, change: Callable[[dict[str, Any]], object] = lambda _: None) -> Path:
        def both(config: dict[str, Any]) -> None:
            config["root"]["path"] = str(machine_rootfs)
            privileged(config)
            change(config)

        return bundle(*args, change=both)

    return make


def qemu_below(shim: int) -> psutil.Process:
    """A shim's QEMU, which has a VM of KVM's: the kernel says so."""
    qemu = next(child for child in psutil.Process(shim).children() if "qemu" in child.name())
    descriptors = [os.readlink(link) for link in Path(f"/proc/{qemu.pid}/fd").iterdir() if link.is_symlink()]
    assert "anon_inode:kvm-vm" in descriptors, descriptors
    return qemu


def qemu_of(command: Cli, container: str) -> psutil.Process:
    """That of a container."""
    return qemu_below(command.state(container)["pid"])
