"""What ``spec`` writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rundctl.engine.plan import compiler
from rundctl.errors import ConfigError
from rundctl.oci import bundle, spec

if TYPE_CHECKING:
    from pathlib import Path


def test_a_bundle_of_it_compiles_without_complaint(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    spec.write(str(tmp_path))
    compiled = compiler.compile(bundle.load(str(tmp_path)), compiler.Facts(rootfs_ops=()))
    assert compiled.warnings == compiled.ignored == []


def test_never_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        spec.write(str(tmp_path))
    assert (tmp_path / "config.json").read_text() == "mine"


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"write {tmp_path}/no/config.json: is missing"):
        spec.write(str(tmp_path / "no"))
