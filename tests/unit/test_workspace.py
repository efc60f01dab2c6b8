"""A directory that one process at a time works in: who waits says for whom, and what a killed owner left is swept up."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from rundctl.host import workspace
from rundctl.host.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OWNER = """
import sys
from rundctl.host.workspace import Workspace
with Workspace(sys.argv[1], "works", print) as directory:
    open(f"{directory}/left", "w").close()
    print("mine", flush=True)
    sys.stdin.read()
"""


def _quiet(_: str) -> None:
    """Nothing is told."""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that works in `.key.tmp` until its stdin ends."""
    argv = [sys.executable, "-c", OWNER, f"{tmp_path}/.key.tmp"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        yield process


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()


def test_it_is_empty_and_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / ".key.tmp"
    (path / "directory").mkdir(parents=True)
    (path / "file").write_bytes(b"of a killed owner")
    with Workspace(str(path), "works", _quiet) as directory:
        assert os.listdir(directory) == []
        (path / "file").write_bytes(b"")
    assert list(tmp_path.iterdir()) == []


def test_what_was_moved_into_place_stays_and_so_does_the_next_ones(tmp_path: Path) -> None:
    path = tmp_path / ".key.tmp"
    with Workspace(str(path), "works", _quiet):
        (path / "file").write_bytes(b"made")
        path.rename(tmp_path / "key")
        path.mkdir()  # another has come
    assert (tmp_path / "key/file").read_bytes() == b"made"
    assert path.is_dir()


def test_who_waits_says_for_whom(tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    said: list[str] = []

    def progress(line: str) -> None:
        said.append(line)
        _end(owner)

    with Workspace(f"{tmp_path}/.key.tmp", "builds this template", progress):
        assert owner.wait() == 0
    assert said == [f"waiting for pid {owner.pid}, which builds this template"]


def test_a_long_wait_is_a_warning(
    tmp_path: Path, owner: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace, "_PATIENCE_S", 0.1)
    said: list[str] = []

    def warn(line: str) -> None:
        said.append(line)
        _end(owner)

    with Workspace(f"{tmp_path}/.key.tmp", "works", _quiet, warn):
        assert said == [f"waiting for pid {owner.pid}, which works"]


def test_a_short_wait_is_no_warning(tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    said: list[str] = []
    with Workspace(f"{tmp_path}/.key.tmp", "works", lambda _: _end(owner), said.append):
        assert said == []


def test_workspaces_of_different_names_do_not_wait(tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    said: list[str] = []
    with Workspace(f"{tmp_path}/.other.tmp", "works", said.append):
        assert owner.poll() is None
    assert said == []


def test_only_the_dead_are_swept_up(tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    for name in (".dead.tmp", "key", ".keep"):
        (tmp_path / name).mkdir()
    (tmp_path / ".file.tmp").write_bytes(b"")
    workspace.sweep(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == [".file.tmp", ".keep", ".key.tmp", "key"]
    owner.kill()
    owner.wait()
    workspace.sweep(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == [".file.tmp", ".keep", "key"]
