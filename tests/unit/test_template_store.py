"""A template is used only if its files are those that were written."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from rundctl.engine.template import store
from rundctl.errors import HostError
from rundctl.host import manifest as manifests
from rundctl.types import Accelerator, TemplateKey
from rundctl.vmm.shape import MachineShape

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEY = TemplateKey("0123456789abcdef")
SHAPE = MachineShape(
    qemu="q", qemu_version=(7, 2), machine="m", accelerator=Accelerator.TCG, memory_mib=1, vcpus=1, upper_mib=1, digests={}, host=""
)  # fmt: skip


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A template's directory with made-up contents."""
    directory = tmp_path / "templates" / KEY
    store.make_directories(str(directory))
    described = {}
    for name in store.FILES:
        (directory / name).write_bytes(name.encode())
        described[name] = {"identity": manifests.file_identity(str(directory / name))}
    (directory / "manifest.json").write_text(json.dumps({"format": store.FORMAT, "files": described}))
    return directory


def _open(directory: Path) -> store.Template | None:
    return store.open_template(str(directory.parent.parent), KEY, SHAPE)


def test_intact(directory: Path) -> None:
    found = _open(directory)
    assert found is not None
    assert found.memory == str(directory / "memory")


def _truncate(directory: Path) -> None:
    os.truncate(directory / "memory", 3)


def _touch(directory: Path) -> None:
    os.utime(directory / "state")


def _remove(directory: Path) -> None:
    (directory / "upper0/image").unlink()


def _replace(directory: Path) -> None:
    _remove(directory)
    (directory / "upper0/image").write_bytes(b"upper0/image")


def _damage_manifest(directory: Path) -> None:
    (directory / "manifest.json").write_text("{")


def _other_format(directory: Path) -> None:
    (directory / "manifest.json").write_text('{"format": 0}')


def _no_files(directory: Path) -> None:
    (directory / "manifest.json").write_text('{"format": 1}')


@pytest.mark.parametrize("damage", [_truncate, _touch, _remove, _replace, _damage_manifest, _other_format, _no_files])
def test_damaged_is_not_used(directory: Path, damage: Callable[[Path], None]) -> None:
    damage(directory)
    assert _open(directory) is None
    assert [entry.intact for entry in store.entries(str(directory.parent.parent))] == [False]


def test_entry_by_prefix(directory: Path) -> None:
    home = str(directory.parent.parent)
    (directory.parent / "0199").mkdir()
    (directory.parent / ".lock").write_bytes(b"")
    assert store.entry(home, "0123").intact
    with pytest.raises(HostError, match="2 keys begin so"):
        store.entry(home, "01")
    with pytest.raises(HostError, match="no such template"):
        store.entry(home, "ff")


def test_none_yet(tmp_path: Path) -> None:
    assert store.entries(str(tmp_path)) == []


def test_one_that_was_replaced_is_not_still_there(directory: Path) -> None:
    found = _open(directory)
    assert found is not None
    assert found.is_still_there()
    text = (directory / "memory").read_bytes()
    (directory / "memory").unlink()
    assert not found.is_still_there()
    (directory / "memory").write_bytes(text)
    assert not found.is_still_there()
