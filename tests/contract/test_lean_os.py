"""rundctl/lean/os.py and path.py against the standard modules."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rundctl.lean import os as lean
from rundctl.lean import path as lean_path

if TYPE_CHECKING:
    from pathlib import Path

PATHS = st.text("/.a\u00e4 ") | st.lists(st.sampled_from(["", ".", "..", "a", "b", "..."]), max_size=9).map("/".join)
OF_ONE = [
    "split",
    "dirname",
    "basename",
    "isabs",
    "normpath",
    "abspath",
    "exists",
    "lexists",
    "isdir",
    "isfile",
    "realpath",
]


@given(PATHS, st.lists(PATHS, max_size=3))
def test_paths(first: str, others: list[str]) -> None:
    assert lean_path.join(first, *others) == os.path.join(first, *others)
    for name in OF_ONE:
        assert getattr(lean_path, name)(first) == getattr(os.path, name)(first), name


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("d", "d/e", "d/closed"):
        (tmp_path / name).mkdir()
    (tmp_path / "d/file").touch()
    links = {
        "to_dir": "d", "to_file": "d/file", "away": "/", "dangling": "d/none", "d/up": "..", "d/e/far": "../../to_dir/up/to_file", "twice": "to_dir/up/d/up/d",
        "circle": "d/e/circle", "d/e/circle": "../../circle", "itself": "itself", "through": "d/file/x", "absolute": f"{tmp_path}/d/../to_dir/e",
    }  # fmt: skip
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    return tmp_path


NAMES = [
    "", ".", "..", "/", "d", "d/", "d/file", "d/file/", "none", "none/x/..", "to_dir", "to_dir/e/..", "to_dir/up", "to_file", "away", "away/etc", "dangling",
    "dangling/x", "d/e/far", "twice", "circle", "circle/x", "itself", "through", "absolute", "absolute/far", "d/file/..", "itself/../d", "a\0b",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_absolute", [False, True])
def test_what_is_there(name: str, is_absolute: bool, tree: Path) -> None:
    where = f"{tree}/{name}" if is_absolute else name
    for call in OF_ONE:
        assert outcome(lean_path, call, where) == outcome(os.path, call, where), call


def outcome(module: object, call: str, *arguments: object) -> object:
    try:
        return getattr(module, call)(*arguments)
    except Exception as error:  # noqa: BLE001
        return type(error), str(error)


def test_samestat(tree: Path) -> None:
    one, same, other = os.stat(tree / "d"), os.stat("to_dir"), os.stat("d/e")
    assert lean_path.samestat(one, same)
    assert not lean_path.samestat(one, other)


@pytest.mark.parametrize("exist_ok", [False, True])
@pytest.mark.parametrize("name", ["d", "d/file", "new", "new/x/y", "to_dir", "dangling", "none/file"])
def test_makedirs(name: str, exist_ok: bool, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    said = outcome(lean, "makedirs", name, 0o750, exist_ok)
    made = os.path.isdir(name) and os.stat(name).st_mode
    if said is None and name.startswith(("new", "none")):
        os.removedirs(name)
    assert outcome(os, "makedirs", name, 0o750, exist_ok) == said
    assert (os.path.isdir(name) and os.stat(name).st_mode) == made


@pytest.mark.parametrize("name", ["a", "\u00e4", "\udcff", b"a", b"\xff\xc3\xa4"])
def test_names_as_bytes_and_as_text(name: str | bytes) -> None:
    assert lean.fsencode(name) == os.fsencode(name)
    assert lean.fsdecode(name) == os.fsdecode(name)


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNDCTL_PROBE", "now")
    assert lean.getenv("RUNDCTL_PROBE") == "now"
    assert lean.getenv("RUNDCTL_NONE") is None
    assert lean.getenv("RUNDCTL_NONE", "x") == "x"
    program = (
        "import sys\nfrom rundctl.lean import os\nprint(ascii([os.getenv(n) for n in ('RUNDCTL_PROBE', 'RUNDCTL_NONE')]), 'os' in sys.modules)\n"
        "print(os.environ['RUNDCTL_PROBE'] == os.getenv('RUNDCTL_PROBE'), 'os' in sys.modules)"
    )
    source = f"import sys; sys.path[:0] = {sys.path!r}\n{program}"
    environment = {"RUNDCTL_PROBE": b"\xff\xc3\xa4", "LC_ALL": "C.UTF-8"}
    done = subprocess.run([sys.executable, "-I", "-S", "-c", source], env=environment, capture_output=True, check=True)
    assert done.stdout == b"['\\udcff\\xe4', None] False\nTrue True\n"


def test_the_rest_is_the_standard_modules() -> None:
    own = {"path", "fsencode", "fsdecode", "getenv", "makedirs"}
    for name in {name for name in (*dir(lean), "walk", "environ", "popen", "PathLike") if hasattr(os, name)} - own:
        assert name.startswith("__") or getattr(lean, name) == getattr(os, name), name
    assert lean_path.relpath is os.path.relpath
    with pytest.raises(AttributeError):
        _ = lean.nothing
