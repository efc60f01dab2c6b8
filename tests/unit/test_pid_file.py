"""``--pid-file``: what is taken back, and what is left alone."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from rundctl.engine.container import pid_file
from rundctl.errors import HostError

if TYPE_CHECKING:
    from pathlib import Path


def test_it_is_the_number_and_nothing_else(tmp_path: Path) -> None:
    pid_file.write(f"{tmp_path}/pid", 4711)
    assert (tmp_path / "pid").read_bytes() == b"4711"
    assert os.listdir(tmp_path) == ["pid"]
    with pytest.raises(HostError, match="write pid file /nowhere/pid: is missing"):
        pid_file.write("/nowhere/pid", 1)


def test_only_what_we_wrote_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    pid_file.remove(str(path), 4711)
    pid_file.remove("", 4711)
    for other in ("4712", "4711\n", "47110", ""):
        path.write_text(other)
        pid_file.remove(str(path), 4711)
        assert path.read_text() == other
    path.write_text("4711")
    pid_file.remove(str(path), 4711)
    assert not path.exists()


@pytest.mark.parametrize("killed", ["before the rename", "after it"])
def test_what_a_killed_create_has_left(tmp_path: Path, killed: str) -> None:
    record = {"pid_file": f"{tmp_path}/pid", "creator": {"pid": 12}, "shim": {"pid": 4711}}
    (tmp_path / ("pid.12.tmp" if killed == "before the rename" else "pid")).write_text("4711")
    (tmp_path / "pid.13.tmp").write_text("4711")
    pid_file.remove_unfinished(record)
    assert os.listdir(tmp_path) == ["pid.13.tmp"]
    pid_file.remove_unfinished({"creator": {"pid": 12}})
    pid_file.remove_unfinished({**record, "pid_file": "/nowhere/pid"})
