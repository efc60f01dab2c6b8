"""The mount table, whatever bytes the paths in it hold."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rundctl.errors import HostError
from rundctl.host import mountinfo
from rundctl.host.mounts import PrivateMounts, mount

if TYPE_CHECKING:
    from pathlib import Path

MS_BIND = 4096
PATHS = st.binary(min_size=1, max_size=40).map(lambda raw: b"/" + raw.replace(b"\0", b"x"))
VALUES = st.binary(max_size=40).map(lambda raw: raw.replace(b"\0", b"x"))


def escaped(raw: bytes, special: bytes) -> bytes:
    """As the kernel's seq_escape and seq_path do it."""
    return b"".join(b"\\%03o" % byte if byte in special else bytes([byte]) for byte in raw)


@given(root=PATHS, target=PATHS, options=st.lists(VALUES, max_size=6), tags=st.lists(st.just(b"shared:1"), max_size=3))
def test_what_the_kernel_escapes_comes_back(
    root: bytes, target: bytes, options: list[bytes], tags: list[bytes]
) -> None:
    shown = b",".join([b"rw", *(b"lowerdir+=%b" % escaped(value, b", \t\n\\") for value in options)])
    paths = [escaped(path, b" \t\n\\") for path in (root, target)]
    line = b" ".join(
        [b"45 27 0:39", *paths, b"rw,relatime", *tags, b"-", b"overlay", escaped(b"a b", b" \t\n\\#"), shown]
    )
    found = mountinfo.parse(line)
    assert (found.id, found.type) == (45, "overlay")
    assert not found.unbindable
    assert mountinfo.parse(line.replace(b" - ", b" unbindable - ", 1)).unbindable
    assert (os.fsencode(found.root), os.fsencode(found.target)) == (root, target)
    assert [(name, os.fsencode(value)) for name, value in found.options] == [
        ("rw", b""),
        *(("lowerdir+", value) for value in options),
    ]


def test_a_label_s_commas_part_no_options() -> None:
    line = b'1 2 0:3 / /m rw - overlay overlay rw,context="system_u:object_r:c_t:s0:c1,c2",lowerdir=/a"b:/c,index=off'
    assert mountinfo.parse(line).options == [
        ("rw", ""),
        ("context", '"system_u:object_r:c_t:s0:c1,c2"'),
        ("lowerdir", '/a"b:/c'),
        ("index", "off"),
    ]


def test_a_source_may_be_empty() -> None:
    assert mountinfo.parse(b"1 2 0:3 / /m rw - tmpfs  rw,size=4k").options == [("rw", ""), ("size", "4k")]


@pytest.mark.parametrize("line", [b"", b"x", b"1 2 0:3 / /m rw tmpfs none rw", b"a 2 0:3 / /m rw - tmpfs none rw"])
def test_what_is_no_line_is_refused(line: bytes) -> None:
    with pytest.raises(HostError, match="mountinfo: not understood"):
        mountinfo.parse(line)


@pytest.mark.usefixtures("private")
def test_the_topmost_of_stacked_mounts_is_found(tmp_path: Path) -> None:
    target = tmp_path / "odd \n\\name\udcff"
    target.mkdir()
    mount("first", str(target), "tmpfs", 0, "size=4k")
    mount("second", str(target), "tmpfs", 0, "size=8k")
    found = mountinfo.at(str(target), mountinfo.read())
    assert found is not None
    assert found.target == str(target)
    assert ("size", "8k") in found.options


@pytest.mark.usefixtures("private")
def test_a_directory_in_a_mount_is_no_mount_point(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    mount("none", str(target), "tmpfs")
    (target / "inside").mkdir()
    (tmp_path / "link").symlink_to(target)
    assert mountinfo.at(str(target / "inside"), mountinfo.read()) is None
    assert mountinfo.at(str(tmp_path / "link"), mountinfo.read()) is not None
    mount(str(target / "inside"), str(target / "inside"), None, MS_BIND)
    found = mountinfo.at(str(target / "inside"), mountinfo.read())
    assert found is not None
    assert found.root == "/inside"


@pytest.mark.usefixtures("private")
def test_below(tmp_path: Path) -> None:
    for name in ("a", "a/in side", "ab"):
        (tmp_path / name).mkdir()
    mount("none", str(tmp_path / "ab"), "tmpfs")
    assert mountinfo.below(str(tmp_path / "a"), mountinfo.read()) is None
    mount("none", str(tmp_path / "a/in side"), "tmpfs")
    assert mountinfo.below(str(tmp_path / "a"), mountinfo.read()) == str(tmp_path / "a/in side")
    assert mountinfo.below("/", mountinfo.read()) is not None


@pytest.mark.usefixtures("private")
def test_what_is_covered_is_not_below(tmp_path: Path) -> None:
    """A table lists such mounts all the same: of a root that was bound onto itself without them, or under another mount."""
    directory = tmp_path / "root"
    (directory / "a/b").mkdir(parents=True)
    mount("none", str(directory / "a/b"), "tmpfs")
    assert mountinfo.below(str(directory), mountinfo.read()) == str(directory / "a/b")
    mount(str(directory), str(directory), None, MS_BIND)
    assert mountinfo.below(str(directory), mountinfo.read()) is None  # a directory of that name is
    mount("none", str(directory), "tmpfs")
    assert mountinfo.below(str(directory), mountinfo.read()) is None  # nothing is


def test_private_mounts_leave_nothing(tmp_path: Path) -> None:
    outside, cwd = os.readlink("/proc/self/ns/mnt"), os.getcwd()
    with PrivateMounts():
        mount("none", str(tmp_path), "tmpfs")
        (tmp_path / "unseen").touch()
        assert os.readlink("/proc/self/ns/mnt") != outside
    assert (os.readlink("/proc/self/ns/mnt"), os.getcwd()) == (outside, cwd)
    assert not any(tmp_path.iterdir())
