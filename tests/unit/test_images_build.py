"""An EROFS image holds exactly what the tree holds, or there is none."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rundctl.engine.rootfs.images import build as builds
from rundctl.engine.rootfs.images import formats, overlay
from rundctl.engine.rootfs.images.content import Content
from rundctl.errors import ConfigError, HostError
from rundctl.host import mounts, process
from rundctl.host.mounts import mount

from . import images_tree
from .images_rig import (
    MIB,
    build,
    deepen,
    host_reads_erofs,
    mounted,
    names,
    replace,
    silent,
    vanish,
)

if TYPE_CHECKING:
    from collections.abc import Callable


needs_erofs = pytest.mark.skipif(
    not host_reads_erofs(), reason="this host's kernel has no EROFS: contents are checked by fsck.erofs alone"
)


@needs_erofs
@pytest.mark.usefixtures("private")
def test_an_image_is_exact(home: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    images_tree.make(source)
    image = build(home, Content.of_directory(str(source), "1"))
    found = images_tree.facts(mounted(image, tmp_path / "mounted"))
    wanted = images_tree.facts(source)
    assert found.keys() == wanted.keys()
    assert {name: found[name] for name in found if found[name] != wanted[name]} == {}


def test_contents_by_fsck(home: str, tmp_path: Path) -> None:
    """What fsck.erofs 1.5 extracts has no attributes, no setuid bits, and new times; all else must be there."""
    source = tmp_path / "source"
    source.mkdir()
    images_tree.make(source)
    image = build(home, Content.of_directory(str(source), "1"))
    subprocess.run(["fsck.erofs", f"--extract={tmp_path}/extracted", image.path], check=True, capture_output=True)
    found, wanted = (
        {
            name: (mode & ~0o6000, uid, gid, device, content)
            for name, (mode, uid, gid, device, _, _, _, _, content) in images_tree.facts(tree).items()
        }
        for tree in (tmp_path / "extracted", source)
    )
    found.pop(".")
    wanted.pop(".")
    assert found == wanted


def test_an_image_can_be_mapped(home: str, tmp_path: Path) -> None:
    """Whole blocks outside of the inodes, a size that virtio-pmem takes, and holes where the zeroes are."""
    source = tmp_path / "source"
    source.mkdir()
    images_tree.make(source)
    image = build(home, Content.of_directory(str(source), "1"))
    status = os.stat(image.path)
    assert (status.st_size, status.st_size % (2 * MIB)) == (image.size_bytes, 0)
    assert status.st_blocks * 512 < 32 * MIB  # the sparse file alone is 64
    assert status.st_mode & 0o777 == 0o400
    for name in ("tail", "file", "none"):
        told = subprocess.run(
            ["dump.erofs", f"--path=/{name}", image.path], check=True, capture_output=True, text=True
        ).stdout
        assert "Layout: 0 " in told or "Layout: 0\t" in told, told  # erofs_fs.h: EROFS_INODE_FLAT_PLAIN


@needs_erofs
@pytest.mark.usefixtures("private")
def test_layers_are_merged_as_the_host_merges_them(home: str, tmp_path: Path) -> None:
    """Whiteouts and opaque directories made by overlayfs itself: two containers' writes become layers, as `commit` makes them."""
    base, first, second = (tmp_path / name for name in ("base", "first", "se,c:on\\d"))
    for path in (base, first, second, *(tmp_path / name for name in ("work1", "work2", "merged1", "merged2", "view"))):
        path.mkdir()
    images_tree.make(base)
    (base / "gone").mkdir()
    (base / "gone/file").touch()
    mount("overlay", f"{tmp_path}/merged1", "overlay", 0, f"lowerdir={base},upperdir={first},workdir={tmp_path}/work1")
    merged = tmp_path / "merged1"
    subprocess.run(["rm", "-r", merged / "gone", merged / "many", merged / "fifo"], check=True)
    (merged / "many").mkdir()
    (merged / "many/only").write_text("one")
    (merged / "file").write_text("changed")
    escaped = str(second).replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")
    lowers = (str(second), str(first), str(base))
    (second / "fifo").write_text("a file now")
    (second / "directory").mkdir()
    os.setxattr(second / "directory", "trusted.overlay.opaque", b"y")
    mount("overlay", f"{tmp_path}/view", "overlay", mounts.MS_RDONLY, f"lowerdir={escaped}:{first}:{base}")
    parts, reason = overlay.of_rootfs(f"{tmp_path}/view")
    assert parts is not None, reason
    assert parts.lowers == lowers
    image = build(home, Content(parts.lowers, parts.merging))
    found, wanted = (images_tree.facts(tree) for tree in (mounted(image, tmp_path / "mounted"), tmp_path / "view"))
    wanted = {name: _without_links(about) for name, about in wanted.items()}
    found = {name: _without_links(about) for name, about in found.items()}
    assert found.keys() == wanted.keys()
    assert {name: found[name] for name in found if found[name] != wanted[name]} == {}
    assert "gone" not in found
    assert "many/only" in found
    assert "many/0" not in found
    assert "directory/hard" not in found


def _without_links(about: tuple[object, ...]) -> tuple[object, ...]:
    """The number of links of an overlay's file counts those that other layers hide."""
    size = about[4][:1] if isinstance(about[4], tuple) else about[4]
    return (*about[:4], size, *about[5:])


def test_one_layer_alone_may_hold_whiteouts(home: str, tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.mkdir()
    (layer / "file").touch()
    os.mknod(layer / "gone", 0o020000, 0)
    image = build(home, Content((str(layer),)))
    subprocess.run(["fsck.erofs", f"--extract={tmp_path}/out", image.path], check=True, capture_output=True)
    assert os.listdir(tmp_path / "out") == ["file"]


def test_many_layers(home: str, tmp_path: Path) -> None:
    layers = [tmp_path / "layers" / f"{number:03}-{'x' * 60}" for number in range(200)]
    for number, layer in enumerate(layers):
        layer.mkdir(parents=True)
        (layer / f"file-{number}").touch()
    image = build(home, Content(tuple(map(str, layers))))
    subprocess.run(["fsck.erofs", f"--extract={tmp_path}/out", image.path], check=True, capture_output=True)
    assert len(os.listdir(tmp_path / "out")) == 200


@needs_erofs
@pytest.mark.usefixtures("private")
@pytest.mark.parametrize(
    ("name", "words"),
    [("lost+found", "took 2 of 3 inodes"), ("lost+found.txt", "took 2 of 3 inodes"), ("n" * 255, "mkfs.erofs: ")],
    ids=["lost+found", "begins like it", "255 bytes"],
)
def test_what_some_mkfs_cannot_hold(home: str, directory: Path, tmp_path: Path, name: str, words: str) -> None:
    """erofs-utils 1.5 cannot, 1.8 can: the image is exact, or there is none and the name is told."""
    (directory / "etc/hostname").unlink()
    (directory / "etc" / name).mkdir()
    said = ""
    try:
        image = build(home, Content.of_directory(str(directory), "1"))
    except HostError as error:
        said = str(error)
    if said:
        assert words in said
        assert said.endswith(f"(some versions of mkfs.erofs cannot hold {directory}/etc/{name})")
        assert names(home) == set()
    else:
        assert images_tree.facts(mounted(image, tmp_path / "mounted")) == images_tree.facts(directory)


def test_a_path_that_is_too_long_is_refused(home: str, directory: Path) -> None:
    deepen(directory)
    with pytest.raises(HostError, match="paths of at most 4095 bytes"):
        build(home, Content.of_directory(str(directory), "1"))


def test_an_image_that_lacks_something_is_not_used(home: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If another mkfs.erofs leaves out other things: this one is told to."""
    monkeypatch.setattr(formats, "_OPTIONS", (*formats._OPTIONS, "--exclude-path=etc/hostname"))
    with pytest.raises(HostError, match="took 2 of 3 inodes"):
        build(home, Content.of_directory(str(directory), "1"))
    assert names(home) == set()


def test_without_mkfs(home: str, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "TOOL_DIRECTORIES", (str(tmp_path),))
    with pytest.raises(HostError, match=r"mkfs.erofs: is not in .* \(apt-get install erofs-utils\)"):
        build(home, Content.of_directory(str(directory), "1"))
    assert names(home) == set()


@pytest.mark.usefixtures("private")
def test_without_room(home: str, directory: Path) -> None:
    (directory / "big").write_bytes(bytes(12 * MIB))
    os.mkdir(home)
    mount("none", home, "tmpfs", 0, "size=8m")
    with pytest.raises(HostError, match=r"8 MiB are free in .*/images, 12 needed \(rundctl image prune"):
        build(home, Content.of_directory(str(directory), "1"))
    assert names(home) == set()


@pytest.mark.usefixtures("private")
def test_room_that_is_gone_meanwhile(home: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / "big").write_bytes(os.urandom(12 * MIB))
    os.mkdir(home)
    mount("none", home, "tmpfs", 0, "size=8m")
    monkeypatch.setattr(builds._Builder, "_check_size", lambda *_: None)
    with pytest.raises(HostError, match=r"no space left in .*/images \(rundctl image prune"):
        build(home, Content.of_directory(str(directory), "1"))
    assert names(home) == set()


def test_larger_than_the_settings_allow(home: str, directory: Path) -> None:
    (directory / "big").write_bytes(bytes(8 * MIB))
    with pytest.raises(HostError, match=r"it takes 8 MiB, and images_max_mib is 7"):
        builds.build(home, Content.of_directory(str(directory), "1"), silent, max_mib=7)


@pytest.mark.usefixtures("private")
def test_a_directory_with_something_mounted_inside(home: str, directory: Path) -> None:
    content = Content.of_directory(str(directory), "1")
    mount("none", str(directory / "etc"), "tmpfs")
    with pytest.raises(HostError, match=f"something is mounted inside of it, at {directory}/etc"):
        build(home, content)


def change_a_file(directory: Path) -> None:
    (directory / "etc/hostname").write_text("xob\n")


@pytest.mark.parametrize("change", [change_a_file, vanish, replace])
def test_what_changes_while_it_is_read_is_noticed(home: str, directory: Path, change: Callable[[Path], None]) -> None:
    """Between the look at it and mkfs.erofs's."""

    def progress(step: str) -> None:
        if step.startswith("writing"):
            change(directory)

    with pytest.raises(HostError, match=f"{directory}.*: (it changed while it was read|is missing|mkfs.erofs: )"):
        build(home, Content.of_directory(str(directory), "1"), progress)
    assert names(home) == set()


def test_a_layer_that_is_gone(home: str, directory: Path, tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.mkdir()
    content = Content((str(layer), str(directory)))
    layer.rmdir()
    with pytest.raises(HostError, match=f"build the image of {layer} and 1 layers below: "):
        build(home, content)
    assert names(home) == set()
    with pytest.raises(HostError, match=f"layer {layer}: is missing"):
        Content((str(layer),))


def test_an_empty_version_is_refused(directory: Path) -> None:
    with pytest.raises(ConfigError, match=r"io\.rundctl\.rootfs\.immutable: it is empty"):
        Content.of_directory(str(directory), "")
