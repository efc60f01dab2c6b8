"""What an image is found by, and when it is not used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rundctl.engine.rootfs.images import content as images
from rundctl.engine.rootfs.images import store
from rundctl.engine.rootfs.images.content import Content

from . import images_tree
from .images_rig import (
    build,
    corrupt,
    names,
    replace,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_key_lasts_as_long_as_the_directories(directory: Path) -> None:
    def key(version: str = "1", options: tuple[str, ...] = ()) -> str:
        return Content((str(directory),), options, version).key

    before = key()
    assert key() == before
    (directory / "etc/hostname").write_text("deep down, nobody looks")
    os.utime(directory)  # ... which changes the ctime
    assert key() != before
    before = key()
    assert key("2") != before
    assert key(options=("userxattr",)) != before
    (directory / "new").touch()
    assert key() != before
    before = key()
    replace(directory)
    assert key() != before


@given(
    st.lists(st.text(alphabet="ab\n,/ ", min_size=1, max_size=3), max_size=4),
    st.lists(st.text(alphabet="ab\n,/ ", min_size=1, max_size=3), max_size=4),
)
def test_options_and_version_do_not_run_into_each_other(first: list[str], second: list[str]) -> None:
    """Different words at different places give different keys."""
    of = lambda words: Content(("/", "/proc"), tuple(words[1:]), words[0] if words else "").key  # noqa: E731
    assert (of(first) == of(second)) == (first == second)


def test_the_order_of_layers_counts(tmp_path: Path) -> None:
    layers = (str(tmp_path), "/")
    assert Content(layers).key != Content(layers[::-1]).key


def test_facts_give_the_same_content_back(tmp_path: Path) -> None:
    odd = tmp_path / images_tree.ODD_NAME
    odd.mkdir()
    content = Content((str(odd), "/"), ("userxattr",))
    assert Content.from_facts(json.loads(json.dumps(content.facts()))).key == content.key


def test_an_image_is_found_once_it_is_there(home: str, directory: Path) -> None:
    content = Content.of_directory(str(directory), "1")
    assert images.find(home, content) is None
    image = build(home, content)
    assert names(home) == {content.key}
    found = images.find(home, content)
    assert found is not None
    assert (found.path, found.size_bytes) == (image.path, os.stat(image.path).st_size)
    assert images.find(home, Content.of_directory(str(directory), "2")) is None


def truncate(path: Path) -> None:
    os.truncate(path, 4096)


def touch(path: Path) -> None:
    path.touch()


def remove(path: Path) -> None:
    path.unlink()


def break_manifest(path: Path) -> None:
    (path.parent / "manifest.json").write_text("{")


@pytest.mark.parametrize("damage", [truncate, corrupt, touch, remove, break_manifest])
def test_a_damaged_image_is_not_used_and_made_anew(home: str, directory: Path, damage: Callable[[Path], None]) -> None:
    content = Content.of_directory(str(directory), "1")
    image = build(home, content)
    before = Path(image.path).read_bytes()
    damage(Path(image.path))
    assert images.find(home, content) is None
    assert [entry.state for entry in store.entries(home)] == ["damaged"]
    assert len(Path(build(home, content).path).read_bytes()) == len(before)
    assert images.find(home, content) is not None
    assert names(home) == {content.key}


def test_finding_loads_nothing_heavy() -> None:
    source = (
        "import sys, rundctl.engine.rootfs.images.content, rundctl.engine.rootfs.images.overlay; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {
        "hashlib",
        "subprocess",
        "ctypes",
        "shutil",
        "typing",
        "dataclasses",
        "rundctl.engine.rootfs.images.build",
    }
