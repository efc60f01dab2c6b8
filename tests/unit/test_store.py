"""Containers on disk: their links, and what calls that were killed leave."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from rundctl.engine.records import store
from rundctl.errors import DamagedError, StateError

if TYPE_CHECKING:
    from pathlib import Path

    from rundctl.engine.records.store import Container


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A root that is not the default one, and a place for links of this test's own."""
    monkeypatch.setattr(store, "_ELSEWHERE", str(tmp_path / "elsewhere"))
    return store.make_root(str(tmp_path / "root"))


def _claim(root: str, container_id: str = "c") -> Container:
    container, lock = store.claim(root, container_id, {})
    os.close(lock)
    return container


def _links() -> list[str]:
    return sorted(os.listdir(store._ELSEWHERE))


_KILLED = """
import os, sys
from rundctl.engine.records import store
store._ELSEWHERE, root, call = sys.argv[1:]
setattr(os, call, lambda *_: os._exit(9))
store.remove(store.read(root + "/c"))
"""


def _killed_in_remove(root: str, call: str) -> None:
    argv = [sys.executable, "-c", _KILLED, store._ELSEWHERE, root, call]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(argv, env=environment, check=False).returncode == 9


def test_removed_with_its_link(root: str) -> None:
    container = _claim(root)
    assert _links() == [f"c@{store.root_name(root)}"]
    store.remove(container)
    assert (_links(), os.listdir(root)) == ([], [])


def test_found_without_its_root_until_it_is_gone(root: str) -> None:
    """A call killed in the middle: whoever calls `delete` without `--root`, as podman's clean-up, finds it as long as it is there."""
    _claim(root)
    _killed_in_remove(root, "rename")
    assert store.load(None, "c").directory == f"{root}/c"
    store.remove(store.load(None, "c"))


def test_the_next_call_sweeps_what_is_half_removed(root: str) -> None:
    _claim(root)
    _killed_in_remove(root, "unlink")
    assert _links(), "the kill came before the link was removed"
    with pytest.raises(StateError):
        store.load(None, "c")
    store.sweep(root)
    assert (_links(), os.listdir(root)) == ([], [])


def test_the_link_of_who_has_the_id_next_stays(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made at the worst moments: right after the directory was renamed away, and right before the link is removed."""
    real = os.rename, os.unlink

    def rename(source: str, target: str) -> None:
        real[0](source, target)
        if ".old:" in target:
            monkeypatch.undo()
            monkeypatch.setattr(store, "_ELSEWHERE", elsewhere)
            _claim(root)

    def unlink(path: str) -> None:
        if "@" in path:
            monkeypatch.undo()
            monkeypatch.setattr(store, "_ELSEWHERE", elsewhere)
            _claim(root)
        real[1](path)

    elsewhere = store._ELSEWHERE
    for name, function in (("rename", rename), ("unlink", unlink)):
        container = _claim(root)
        monkeypatch.setattr(os, name, function)
        store.remove(container)
        assert store.load(None, "c").directory == f"{root}/c", name
        store.remove(store.load(None, "c"))
    assert _links() == []


def test_a_link_that_goes_while_it_is_looked_for(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    container = _claim(root)
    real = os.listdir

    def listdir(path: str) -> list[str]:
        names = real(path)
        if path == store._ELSEWHERE:
            monkeypatch.setattr(os, "listdir", real)
            store.remove(container)
        return names

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(StateError, match="does not exist"):
        store.load(None, "c")


def test_a_damaged_record_hides_no_other(root: str) -> None:
    for name in ("a", "b", "c"):
        _claim(root, name)
    os.truncate(f"{root}/b/record.json", 10)
    told: list[str] = []
    assert [container.id for container in store.list_all(root, told.append)] == ["a", "c"]
    assert len(told) == 1
    assert "rundctl delete --force b" in told[0]
    with pytest.raises(DamagedError) as caught:
        store.load(root, "b")
    assert caught.value.directory == f"{root}/b"
