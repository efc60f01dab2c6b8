"""Containers on disk: their links, what calls that were killed leave, and whose records are believed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rundctl.engine.records import store
from rundctl.errors import DamagedError, HostError, StateError
from rundctl.lean import os as lean_os
from rundctl.types import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rundctl.engine.records.store import Container


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A root that is not the default one, and a place for links of this test's own."""
    monkeypatch.setattr(store, "_ELSEWHERE", str(tmp_path / "elsewhere"))
    return store.make_root(str(tmp_path / "root"))


def _claim(root: str, container_id: str = "c") -> Container:
    with ExitStack() as held:
        return store.claim(held, root, container_id, {})


def _links() -> list[str]:
    return sorted(os.listdir(store._ELSEWHERE))


_KILLED = """
import sys
from rundctl.lean import os
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
        monkeypatch.setattr(lean_os, name, function)
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
            monkeypatch.setattr(lean_os, "listdir", real)
            store.remove(container)
        return names

    monkeypatch.setattr(lean_os, "listdir", listdir)
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


NOBODY = 65534


@pytest.fixture
def common() -> Iterator[Path]:
    """A directory where everybody makes what they like, as /tmp is."""
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    directory.chmod(0o1777)
    yield directory
    shutil.rmtree(directory)


_FORGE = """
import json, os, sys
directory, record = sys.argv[1:]
os.makedirs(directory, 0o755)
with open(f"{directory}/record.json", "w") as file:
    file.write(record)
"""


def _forge(directory: str, **more: object) -> None:
    record = {"id": "c", "hooks": {"poststop": [{"path": "/bin/evil"}]}, **more}
    argv = [sys.executable, "-c", _FORGE, directory, json.dumps(record)]
    subprocess.run(argv, user=NOBODY, group=NOBODY, check=True)


def test_a_root_that_others_made_anew_is_not_believed(root: str, common: Path) -> None:
    """Its container lay elsewhere; the root went without `delete`, and another user has made it again: `delete --force` would run their hook as root."""
    del root
    gone = store.make_root(f"{common}/root")
    _claim(gone)
    assert store.load(None, "c").directory == f"{gone}/c"
    shutil.rmtree(gone)
    _forge(f"{gone}/c")
    with pytest.raises(StateError, match=rf"does not exist \({gone} is not believed: it belongs to uid {NOBODY}\)"):
        store.load(None, "c")
    with pytest.raises(HostError, match=f"{gone} is not believed"):
        store.load(gone, "c")
    with pytest.raises(HostError, match=f"{gone} is not believed"):
        store.make_root(gone)


def test_a_link_to_another_root_is_not_believed(root: str, common: Path) -> None:
    """What is not the directory that was linked is not looked into, whoever made it, nor by way of somebody's link."""
    _claim(root, "other")
    gone = store.make_root(f"{common}/root")
    _claim(gone)
    os.rename(gone, common / "aside")  # not removed: else the next one may get its inode
    kept = common / "theirs"
    os.symlink(root, kept)
    os.lchown(kept, NOBODY, NOBODY)
    os.rename(kept, gone)
    os.rename(f"{root}/other", f"{root}/c")
    with pytest.raises(StateError, match="does not exist"):
        store.load(None, "c")
    os.unlink(gone)
    again = store.make_root(gone)
    os.makedirs(f"{again}/c", 0o700)
    shutil.copy(f"{root}/c/record.json", f"{again}/c/record.json")
    with pytest.raises(StateError, match="does not exist"):
        store.load(None, "c")


def _by_nobody(path: str) -> None:
    os.chown(path, NOBODY, NOBODY)


def _for_all(path: str) -> None:
    os.chmod(path, os.stat(path).st_mode | 0o002)


def _for_a_group(path: str) -> None:
    os.chown(path, 0, NOBODY)
    os.chmod(path, os.stat(path).st_mode | 0o020)


@pytest.mark.parametrize("change", [_by_nobody, _for_all, _for_a_group])
@pytest.mark.parametrize("what", ["", "/c", "/c/record.json"])
def test_a_record_that_others_could_have_written_is_not_believed(
    root: str, what: str, change: Callable[[str], None]
) -> None:
    _claim(root)
    assert store.load(root, "c").id == "c"
    change(f"{root}{what}")
    with pytest.raises(HostError, match=f"{root}{what} is not believed"):
        store.load(root, "c")
    told: list[str] = []
    assert list(store.list_all(root, told.append)) == []
    assert len(told) == 1


def test_a_record_is_no_link(root: str, tmp_path: Path) -> None:
    """Nor is its directory: whoever could make the one there could not make the other."""
    container = _claim(root)
    os.rename(container.path("record.json"), tmp_path / "record.json")
    os.symlink(tmp_path / "record.json", container.path("record.json"))
    with pytest.raises(HostError, match="is not believed: it is a link"):
        store.load(root, "c")
    os.rename(f"{root}/c", tmp_path / "c")
    os.symlink(tmp_path / "c", f"{root}/c")
    with pytest.raises(StateError, match="does not exist"):
        store.load(root, "c")


@pytest.mark.parametrize("text", ["[]", "{}", "null", "7"])
def test_what_is_no_record_is_damaged(root: str, text: str) -> None:
    Path(_claim(root).path("record.json")).write_text(text)
    with pytest.raises(DamagedError, match="is damaged: it is not a record"):
        store.load(root, "c")


def test_an_empty_directory_is_told_of(root: str) -> None:
    """In runc's words. What is no container's name, or no directory, is nothing to tell of."""
    for name in ("empty", ".new:1", ".pool"):
        os.makedirs(f"{root}/{name}")
    Path(f"{root}/file").touch()
    told: list[str] = []
    assert list(store.list_all(root, told.append)) == []
    assert told == ["load container empty: container does not exist"]


def test_a_lock_reads_the_record_anew(root: str) -> None:
    container = _claim(root)
    other = store.load(root, "c")
    other.record["more"] = 1
    other.save()
    with store.locked(container):
        assert container.record["more"] == 1
        with pytest.raises(StateError, match="is busy"), store.locked(other, 0.0):
            pass
        store.remove(container)
    with pytest.raises(StateError, match="just deleted"), store.locked(other):
        pass


def test_who_commits_and_ends_while_it_is_looked_at(root: str) -> None:
    """The record that was read says that its creator is at work; by now it is not, and the container is complete."""
    container = _claim(root)
    shim = {"pid": os.getpid(), "start_time": container.record["creator"]["start_time"]}
    container.record |= {"creator": {"pid": 1, "start_time": 0}, "shim": shim}
    container.save()
    assert container.seen() == (Status.STOPPED, 0)
    complete = store.load(root, "c")
    complete.record["committed"] = True
    complete.save()
    assert container.seen() == (Status.CREATED, os.getpid())


def test_a_status_and_a_pid_are_of_one_moment(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shim that ends between two looks was `running`, pid 0."""
    container = _claim(root)
    container.record |= {"committed": True, "shim": {"pid": 7, "start_time": 1}}
    looks = iter([1])
    monkeypatch.setattr(store, "start_time", lambda pid: next(looks, None) if pid else None)
    assert container.seen() == (Status.CREATED, 7)
    assert container.seen() == (Status.STOPPED, 0)


def test_a_link_that_was_being_made_is_swept(root: str) -> None:
    _claim(root)
    with subprocess.Popen(["sleep", "0"]) as dead:
        dead.wait()
    alive = f".new:{os.getpid()}"
    for name in (f".new:{dead.pid}", alive):
        os.symlink(root, f"{store._ELSEWHERE}/{name}")
    store.sweep(root)
    assert _links() == [alive, f"c@{store.root_name(root)}"]
