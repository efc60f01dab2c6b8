"""The lean QEMU: what it is asked to be, and which one is the default; building it is for tests/system."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from rundctl.errors import HostError
from rundctl.host import workshop
from rundctl.vmm import binary, qemu_build


@pytest.fixture(autouse=True)
def _libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_build, "_libraries", lambda _: ["glib2.0 2.74"])


def _built(home: Path, name: str) -> str:
    directory = home / "qemu" / name
    directory.mkdir(parents=True)
    (directory / binary.MANIFEST).write_text("{}")
    (directory / binary.NAME).write_text("")
    (directory / binary.NAME).chmod(0o755)
    return name


def test_every_option_has_a_reason() -> None:
    rows = (*qemu_build._DEVICES, *qemu_build._FEATURES, *qemu_build._SHAPE)
    assert all(len(reason) > 1 for _, reason in rows)
    assert len({name for name, _ in rows}) == len(rows)


def test_optional_options_only_where_configure_knows_them() -> None:
    options = qemu_build._options("  coroutine-pool  share them\n")
    assert "--enable-coroutine-pool" in options
    assert not [option for option in qemu_build._options("") if "?" in option or "coroutine" in option]
    assert "--enable-virtfs" in qemu_build._options("")


def test_name_tells_the_version_and_depends_on_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        qemu_build.Recipe(*row).name() for row in (("1:7.2-1", "gcc 12"), ("1:7.2-2", "gcc 12"), ("1:7.2-1", "gcc 13"))
    }
    monkeypatch.setattr(qemu_build, "_libraries", lambda _: ["glib2.0 2.75"])
    names.add(qemu_build.Recipe("1:7.2-1", "gcc 12").name())
    monkeypatch.setattr(qemu_build, "_DEVICES", qemu_build._DEVICES[1:])
    names.add(qemu_build.Recipe("1:7.2-1", "gcc 12").name())
    assert len(names) == 5
    assert all(name.startswith(("7.2-1-lean-", "7.2-2-lean-")) for name in names)


def test_the_name_depends_on_our_patches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = qemu_build.Recipe("1:7.2-1", "gcc 12")
    names = {recipe.name()}
    monkeypatch.setattr(qemu_build, "_PATCHES", str(tmp_path))
    names.add(recipe.name())
    (tmp_path / "7.2").mkdir()
    patch = tmp_path / "7.2" / "0001-one.patch"
    for text in ("one", "another"):
        patch.write_text(text)
        names.add(recipe.name())
    patch.rename(patch.with_name("0002-one.patch"))
    names.add(recipe.name())
    assert len(names) == 5


def test_patches_are_for_one_series() -> None:
    ours = qemu_build.patches("1:7.2+dfsg-7+deb12u18")
    assert ours == sorted(ours) != []
    assert qemu_build.patches("1:10.0.13+ds-0+deb13u1") == []


@pytest.mark.parametrize("path", qemu_build.patches("1:7.2"), ids=os.path.basename)
def test_a_patch_has_a_reason_a_licence_and_whole_hunks(path: str) -> None:
    text = Path(path).read_text(encoding="utf-8")
    head, _, body = text.partition("\n--- ")
    reason, _, licence = head.rstrip().rpartition("\n")
    assert licence.removeprefix("SPDX-License-Identifier: ") in ("GPL-2.0-or-later", "LGPL-2.1-or-later")  # its file's
    assert len(reason.split()) > 10
    hunks = re.findall(
        r"(?m)^@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@.*\n((?:[-+ ].*\n|\n)*)", f"--- {body}".replace("\n--- a/", "\n#")
    )
    assert hunks
    for before, after, lines in hunks:
        signs = [line[:1] or " " for line in lines.splitlines()]
        assert (len(signs) - signs.count("+"), len(signs) - signs.count("-")) == (int(before or 1), int(after or 1))


def test_a_patch_that_does_not_fit_is_told_and_left_out(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "one.c").write_text("a\nb\nc\n")
    (tree / "two.c").write_text("other\n")
    hunk = "reason\n\n--- a/{0}\n+++ b/{0}\n@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n"
    for number, name in enumerate(("two.c", "one.c")):
        (tmp_path / f"{number}.patch").write_text(hunk.format(name))
    told: list[str] = []
    fitting = qemu_build.apply([f"{tmp_path}/0.patch", f"{tmp_path}/1.patch"], str(tree), told.append)
    assert fitting == ["1.patch"]
    assert (tree / "one.c").read_text() == "a\nB\nc\n"
    assert sorted(path.name for path in tree.iterdir()) == ["one.c", "two.c"]
    assert (tree / "two.c").read_text() == "other\n"
    assert told == ["0.patch does not fit this source, and is left out: QEMU will start slower"]


def test_missing_libraries_are_named_with_their_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = workshop.needs((("/nonexistent/libz.a", "zlib1g-dev", "cannot be left out"),))
    monkeypatch.setattr(qemu_build, "_NEEDS", needs)
    monkeypatch.setattr(qemu_build, "candidate", lambda: "1:10.0.13+ds-0+deb13u1")
    with pytest.raises(HostError, match=r"build QEMU: missing: zlib1g-dev .cannot be left out") as caught:
        qemu_build.build(str(tmp_path), lambda _: None)
    assert caught.value.hint == "apt-get install zlib1g-dev"


@pytest.mark.parametrize(
    ("version", "needed"),
    [
        ("1:7.2+dfsg-7", True),
        ("1:8.1.5+ds-1", True),
        ("1:8.2+ds-1", False),
        ("1:8.2~rc1-1", False),
        ("1:10.0.13+ds-0", False),
    ],
)
def test_pixman_only_for_versions_that_cannot_do_without(version: str, needed: bool) -> None:
    assert ("libpixman-1-dev" in {need.package for need in qemu_build._needs(version)}) is needed


@pytest.mark.parametrize(
    ("fields", "version"),
    [
        ({"Version:": ["1:7.2-1+b3"], "Source:": ["qemu (1:7.2-1)"]}, "1:7.2-1"),
        ({"Version:": ["1:7.2-1"], "Source:": ["qemu"]}, "1:7.2-1"),
        ({"Version:": ["1:7.2-1"], "Source:": []}, "1:7.2-1"),
    ],
)
def test_the_source_s_version(fields: dict[str, list[str]], version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_build.apt, "fields", lambda _, __, field, **___: fields[field])
    assert qemu_build.candidate() == version


def test_the_default_is_the_host_s_own_until_one_is_built(tmp_path: Path) -> None:
    home = str(tmp_path)
    assert binary.current(home) == ""
    assert binary.names(home) == []
    name = _built(tmp_path, "7.2-lean-1")
    assert binary.current(home) == ""
    binary.make_current(home, name)
    assert binary.find(binary.Choice(home)) == binary.program(home, name)
    binary.make_current(home, binary.SYSTEM)
    assert binary.current(home) == ""


def test_a_setting_names_one(tmp_path: Path) -> None:
    home = str(tmp_path)
    for name in ("7.2-lean-1", "7.2-lean-2"):
        _built(tmp_path, name)
    binary.make_current(home, "7.2-lean-1")
    assert binary.find(binary.Choice(home, "7.2-lean-2")) == binary.program(home, "7.2-lean-2")
    path = binary.program(home, "7.2-lean-1")
    assert binary.find(binary.Choice("/nowhere", path)) == path


@pytest.mark.parametrize("name", ["gone", "current", ""])
def test_use_of_what_is_no_qemu_changes_nothing(tmp_path: Path, name: str) -> None:
    home = str(tmp_path)
    binary.make_current(home, _built(tmp_path, "7.2-lean-1"))
    with pytest.raises(HostError, match=r"there are: 7\.2-lean-1"):
        binary.make_current(home, name)
    assert binary.current(home) == "7.2-lean-1"
