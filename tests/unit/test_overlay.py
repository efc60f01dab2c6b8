"""Overlay mounts of this kernel, taken apart; and what is not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rundctl.engine.rootfs.images import overlay
from rundctl.engine.rootfs.images.overlay import of_rootfs, split_lowers
from rundctl.host import mountinfo
from rundctl.host.mounts import mount

if TYPE_CHECKING:
    pass

MS_BIND = 4096
MS_RDONLY = 1


@pytest.fixture
def tree(tmp_path: Path, private: None) -> Path:
    """Layers with a file each, and room for an upper."""
    del private
    for name in ("a", "b:c", "upper", "work", "merged", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "a/in-a").touch()
    (tmp_path / "b:c/in-b").touch()
    return tmp_path


def stacked(tree: Path, options: str, where: str = "merged", flags: int = 0) -> str:
    """Mount one, as seen from ``tree``."""
    cwd = os.getcwd()
    os.chdir(tree)
    try:
        mount("overlay", str(tree / where), "overlay", flags, options)
    finally:
        os.chdir(cwd)
    return str(tree / where)


@given(st.lists(st.text(min_size=1).filter(lambda name: "\0" not in name), min_size=1))
def test_lowers_come_back_whatever_is_in_their_names(names: list[str]) -> None:
    given_ = ":".join(name.replace("\\", "\\\\").replace(":", "\\:") for name in names)
    assert list(split_lowers(given_)) == names


def test_a_mount_s_parts(tree: Path) -> None:
    merged = stacked(tree, f"lowerdir={tree}/a:{tree}/b\\:c,upperdir={tree}/upper,workdir={tree}/work")
    found, reason = of_rootfs(merged)
    assert (found is not None, reason) == (True, "")
    assert found is not None
    assert found.lowers == (f"{tree}/a", f"{tree}/b:c")
    assert (found.upper, found.work, found.merging) == (f"{tree}/upper", f"{tree}/work", ())


def test_links_are_followed_and_options_that_matter_kept(tree: Path) -> None:
    (tree / "l").symlink_to(tree / "a")
    options = f"lowerdir={tree}/l:{tree}/b\\:c,redirect_dir=on,metacopy=on,index=off,xino=off"
    found, reason = of_rootfs(stacked(tree, f"{options},upperdir={tree}/upper,workdir={tree}/work"))
    assert found is not None, reason
    assert found.lowers == (f"{tree}/a", f"{tree}/b:c")
    assert found.merging == ("metacopy=on", "redirect_dir=on")


def test_without_an_upper(tree: Path) -> None:
    found, reason = of_rootfs(stacked(tree, f"lowerdir={tree}/a:{tree}/b\\:c,userxattr", flags=MS_RDONLY))
    assert found is not None, reason
    assert (found.upper, found.work) == (None, None)
    assert "userxattr" in found.merging


def test_many_layers(tree: Path) -> None:
    """More than a page of them: 127 is what docker and podman make at most."""
    for number in range(127):
        (tree / f"layer-{number}").mkdir()
    names = [f"layer-{number}" for number in range(127)]
    found, reason = of_rootfs(stacked(tree, f"lowerdir={':'.join(names)},upperdir=upper,workdir=work"))
    assert found is not None, reason
    assert found.lowers == tuple(f"{tree}/{name}" for name in names)


def test_relative_layers_as_podman_mounts_them(tree: Path) -> None:
    """From the directory above the containers': lowers by short links, upper and work beside the mount point."""
    for name in ("l", "X", "X/diff", "C", "C/diff", "C/work", "C/merged"):
        (tree / name).mkdir()
    (tree / "X/diff/file").touch()
    (tree / "l/SHORT").symlink_to("../X/diff")
    found, reason = of_rootfs(stacked(tree, "lowerdir=l/SHORT,upperdir=C/diff,workdir=C/work", "C/merged"))
    assert found is not None, reason
    assert (found.lowers, found.upper, found.work) == ((f"{tree}/X/diff",), f"{tree}/C/diff", f"{tree}/C/work")


def test_relative_layers_as_containerd_mounts_them(tree: Path) -> None:
    """From the snapshots' common parent, with upper and work absolute and the mount point elsewhere."""
    for name in ("snapshots/1/fs", "snapshots/2/fs", "snapshots/3/fs", "snapshots/3/work", "run/id/rootfs"):
        (tree / name).mkdir(parents=True)
    upper = f"upperdir={tree}/snapshots/3/fs,workdir={tree}/snapshots/3/work"
    cwd = os.getcwd()
    os.chdir(tree / "snapshots")
    try:
        mount("overlay", f"{tree}/run/id/rootfs", "overlay", 0, f"lowerdir=2/fs:1/fs,{upper}")
    finally:
        os.chdir(cwd)
    found, reason = of_rootfs(f"{tree}/run/id/rootfs")
    assert found is not None, reason
    assert found.lowers == (f"{tree}/snapshots/2/fs", f"{tree}/snapshots/1/fs")


def test_relative_layers_that_may_be_meant_from_two_places(tree: Path) -> None:
    for name in ("sub", "sub/a", "sub/merged"):
        (tree / name).mkdir()
    (tree / "sub/a/in-a").touch()
    found, reason = of_rootfs(stacked(tree, f"lowerdir=a:{tree}/b\\:c", "sub/merged"))
    assert found is None
    assert "has relative layers (a), and 2 directories that they could start from" in reason


def test_relative_layers_from_nowhere_near(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    cwd = os.getcwd()
    os.chdir(tree)
    try:
        mount("overlay", str(elsewhere), "overlay", 0, "lowerdir=a:b\\:c")
    finally:
        os.chdir(cwd)
    found, reason = of_rootfs(str(elsewhere))
    assert found is None
    assert "and 0 directories" in reason


def test_layers_that_are_no_longer_what_was_mounted(tree: Path) -> None:
    merged = stacked(tree, f"lowerdir={tree}/a:{tree}/b\\:c")
    (tree / "a").rename(tree / "moved")
    assert of_rootfs(merged) == (None, f"{tree}/a is missing")
    (tree / "a").mkdir()
    assert of_rootfs(merged) == (None, f"{merged} has 'in-a', which none of the layers of its mount has")


def test_what_is_no_overlay(tree: Path) -> None:
    merged = str(tree / "merged")
    assert of_rootfs(merged) == (None, f"{merged} is not a mount point")
    assert of_rootfs(f"{tree}/none") == (None, f"{tree}/none is missing")
    mount("none", merged, "tmpfs")
    assert of_rootfs(merged) == (None, f"{merged} is tmpfs, not overlay")


def test_a_part_of_an_overlay(tree: Path) -> None:
    merged = stacked(tree, f"lowerdir={tree}/a:{tree}/b\\:c,upperdir={tree}/upper,workdir={tree}/work")
    (tree / "merged/sub").mkdir()
    mount(f"{merged}/sub", f"{tree}/empty", None, MS_BIND)
    assert of_rootfs(f"{tree}/empty") == (None, f"{tree}/empty is only a part of an overlay (/sub)")
    mount(f"{merged}/sub", f"{merged}/sub", None, MS_BIND)
    assert of_rootfs(merged) == (None, f"something is mounted inside of it, at {merged}/sub")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"fuse.fuse-overlayfs fuse-overlayfs rw,user_id=0", "is fuse.fuse-overlayfs, not overlay"),
        (b"overlay overlay rw,lowerdir=/a::/data,metacopy=on", "has data-only layers"),
        (b"overlay overlay rw,lowerdir+=/a,datadir+=/data,metacopy=on", "has the option datadir+, whose effect"),
        (b"overlay overlay rw,lowerdir=/a:/b,verity=require", "has the option verity, whose effect"),
        (b"overlay overlay rw,lowerdir=/a:/b,of_next_year", "has the option of_next_year, whose effect"),
        (b"overlay overlay rw", "shows no lowerdir"),
    ],
)
def test_what_cannot_be_taken_apart_is_told(line: bytes, words: str) -> None:
    with pytest.raises(overlay._Not) as caught:
        overlay.of_mount(mountinfo.parse(b"1 2 0:3 / /m rw - " + line))
    assert words in str(caught.value)


def test_layers_that_were_added_one_by_one(tree: Path) -> None:
    """Kernels since 6.5 show those as they are, colons and all."""
    line = f"1 2 0:3 / /m rw - overlay none ro,lowerdir+={tree}/a,lowerdir+={tree}/b:c,redirect_dir=on"
    found = overlay.of_mount(mountinfo.parse(line.encode()))
    assert found.lowers == (f"{tree}/a", f"{tree}/b:c")


def test_an_upper_with_a_backslash_in_its_name(tree: Path) -> None:
    (tree / "up\\per").mkdir()
    merged = stacked(tree, f"lowerdir={tree}/a,upperdir={tree}/up\\\\per,workdir={tree}/work")
    found, reason = of_rootfs(merged)
    assert found is not None, reason
    assert found.upper == f"{tree}/up\\per"


def test_what_the_module_does_unless_told_otherwise(tmp_path: Path) -> None:
    """It is not shown in mountinfo."""
    assert overlay._defaults(str(tmp_path)) == {}
    (tmp_path / "metacopy").write_text("Y\n")
    (tmp_path / "redirect_dir").write_text("N\n")
    assert overlay._defaults(str(tmp_path)) == {"metacopy": "on"}
