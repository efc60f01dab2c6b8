"""The ext4 image that a container's own disk is copied from holds exactly what the tree holds, has room, and is kept as EROFS images are."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rundctl.engine.rootfs import disk, transport
from rundctl.engine.rootfs.images import build as builds
from rundctl.engine.rootfs.images import content as images
from rundctl.engine.rootfs.images import formats, scan, store
from rundctl.engine.rootfs.images.content import Content
from rundctl.engine.rootfs.images.formats import Ext4
from rundctl.engine.rootfs.images.scan import Tree
from rundctl.errors import ConfigError, HostError
from rundctl.host import files, loop, process
from rundctl.host import manifest as manifests
from rundctl.host.mounts import mount

from . import images_tree
from .images_rig import MIB, build, corrupt, eventually, names, vanish
from .test_images_builders import builder, children

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOM_MIB = 100


@contextmanager
def mounted(image: str, where: Path) -> Iterator[Path]:
    where.mkdir()
    subprocess.run(["mount", "-t", "ext4", "-o", "loop,noload,ro", image, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


def _content(directory: Path, room_mib: int = ROOM_MIB) -> Content:
    return Content.of_directory(str(directory), "1").with_room(room_mib)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir(mode=0o711)
    images_tree.make(source)
    (source / "lost+found").mkdir(mode=0o1700)
    (source / ("n" * 255)).touch()
    return source


@pytest.fixture
def devices() -> Iterator[None]:
    """No loop device is left."""
    before = set(loop._devices())
    used = {path for path in before if loop._status(path)[0]}
    yield
    eventually(lambda: {p for p in loop._devices() if loop._status(p)[0]} <= used, "loop devices are free again")


@pytest.mark.usefixtures("devices")
def test_an_image_is_exact_and_has_room(home: str, tree: Path, tmp_path: Path) -> None:
    image = build(home, _content(tree))
    assert images.device_mib(image.size_bytes) << 20 == image.size_bytes
    status = os.stat(image.path)
    assert (status.st_size, status.st_mode & 0o777) == (image.size_bytes, 0o400)
    assert status.st_blocks * 512 < 40 * MIB, "holes are holes"
    subprocess.run(["e2fsck", "-fn", image.path], check=True, capture_output=True)
    with mounted(image.path, tmp_path / "mounted") as seen:
        found, wanted = images_tree.facts(seen), images_tree.facts(tree)
        assert found.keys() == wanted.keys()
        assert {name: found[name] for name in found if found[name] != wanted[name]} == {}
        space = os.statvfs(seen)
        assert space.f_bavail * space.f_frsize >= ROOM_MIB * MIB
        assert space.f_favail >= ROOM_MIB * 64


def test_another_file_system_another_key(directory: Path) -> None:
    keys = {Content.of_directory(str(directory), "1").key, _content(directory).key, _content(directory, 101).key}
    assert len(keys) == 3


@pytest.mark.usefixtures("private")
def test_layers_are_merged(home: str, tmp_path: Path) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    for layer in (base, top):
        layer.mkdir()
        (layer / layer.name).touch()
    os.mknod(top / "gone", 0o20000)
    (base / "gone").touch()
    image = build(home, Content((str(top), str(base))).with_room(0))
    with mounted(image.path, tmp_path / "mounted") as seen:
        assert sorted(os.listdir(seen)) == ["base", "top"]


def test_a_damaged_image_is_made_anew(home: str, directory: Path) -> None:
    """Truncated or written to: seen at once. Its disk's doing: seen by its digest."""
    content = _content(directory)
    path = Path(build(home, content).path)
    path.chmod(0o600)
    os.truncate(path, MIB)
    assert images.find(home, content) is None
    assert [entry.state for entry in store.entries(home)] == ["damaged"]
    corrupt(Path(build(home, content).path))
    assert images.find(home, content) is None
    image = build(home, content)
    assert store.verify(home, lambda _: None) == []
    manifest = manifests.read(os.path.dirname(image.path), images.FORMAT)
    assert manifest is not None
    assert manifest["content"]["room_mib"] == ROOM_MIB


def test_what_cp_cannot_copy_is_no_image(home: str, directory: Path, tmp_path: Path) -> None:
    """Attributes of more than a block, on a file system that takes them."""
    store = tmp_path / "xfs.img"
    with store.open("wb") as file:
        file.truncate(384 * MIB)
    subprocess.run(["mkfs.xfs", "-q", store], check=True)
    (tmp_path / "xfs").mkdir()
    subprocess.run(["mount", "-o", "loop", store, tmp_path / "xfs"], check=True)
    try:
        (tmp_path / "xfs/file").touch()
        os.setxattr(tmp_path / "xfs/file", "user.large", bytes(30000))
        with pytest.raises(HostError, match=r"build the image of .*xfs: .*user.large"):
            build(home, _content(tmp_path / "xfs"))
    finally:
        subprocess.run(["umount", tmp_path / "xfs"], check=True)
    assert names(home) == set()


@pytest.mark.usefixtures("private", "devices")
def test_room_that_is_gone_meanwhile(home: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / "big").write_bytes(os.urandom(12 * MIB))
    os.mkdir(home)
    mount("none", home, "tmpfs", 0, "size=8m")
    monkeypatch.setattr(builds._Builder, "_check_size", lambda *_: None)
    with pytest.raises(HostError, match=r"build the image of .*(rundctl image prune)"):
        build(home, _content(directory))
    assert names(home) == set()


@pytest.mark.usefixtures("devices")
def test_cp_ends_with_its_builder(home: str, tmp_path: Path, directory: Path) -> None:
    big = tmp_path / "big"
    big.mkdir()
    for number in range(300):
        (big / str(number)).write_bytes(bytes(MIB))
    content = Content((str(big),)).with_room(64)
    with builder(home, big, room_mib=64) as killed:
        cp = eventually(lambda: [pid for pid in children(killed.pid) if _is_cp(pid)], "cp runs")
        killed.kill()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in cp), "cp ends with its builder")
    assert names(home) == {f".{content.key}.tmp"}
    build(home, _content(directory))
    assert names(home) == {_content(directory).key}


def _is_cp(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "cp\n"
    except OSError:
        return False


@pytest.mark.usefixtures("devices")
def test_a_disk_of_what_may_change(tree: Path, tmp_path: Path) -> None:
    """In a file without a name, in a directory in which nothing is left."""
    place, empty = tmp_path / "place", tmp_path / "empty"
    place.mkdir()
    empty.mkdir()
    mib = disk.size_mib(str(tree), ROOM_MIB)
    made = disk.open_copy(transport.blk(str(tree), mib), str(place), str(empty))
    try:
        assert os.fstat(made).st_size == mib << 20
        with mounted(f"/proc/{os.getpid()}/fd/{made}", tmp_path / "mounted") as seen:
            assert images_tree.facts(seen) == images_tree.facts(tree)
    finally:
        os.close(made)
    assert os.listdir(place) == os.listdir(empty) == []


@pytest.mark.usefixtures("devices")
def test_no_symlink_leads_cp_out_of_the_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would one that who else writes to the tree puts in a directory's place, once cp has seen the directory."""
    tree, outside, place = (tmp_path / name for name in ("tree", "outside", "place"))
    for directory in (tree / "directory", outside, place / "empty"):
        directory.mkdir(parents=True)
    (outside / "secret").write_text("of the host")
    (tree / "link").symlink_to(outside)
    run, tried = formats._run, []

    def swapped(argv: list[str]) -> tuple[int, str]:
        with pytest.raises(OSError, match="symbolic links") as refused:
            (tree / "link/secret").read_text()
        tried.append(refused.value.errno)
        with pytest.raises(OSError, match="Read-only"):
            (tree / "new").touch()
        return run(argv)

    monkeypatch.setattr(formats, "_run", swapped)
    made = disk.open_copy(transport.blk(str(tree), 64), str(place), str(place / "empty"))
    try:
        with mounted(f"/proc/{os.getpid()}/fd/{made}", tmp_path / "mounted") as seen:
            assert os.readlink(seen / "link") == str(outside)
    finally:
        os.close(made)
    assert tried, "cp was run"
    assert (tree / "link/secret").read_text() == "of the host", "elsewhere it is a link as any other"


def test_what_vanishes_while_it_is_looked_at_is_one_line(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def vanished(_: str) -> Tree:
        raise HostError(f"{directory}/file: is missing")

    monkeypatch.setattr(scan, "Tree", vanished)
    with pytest.raises(HostError, match=f"^copy the root file system {directory}: {directory}/file: is missing$"):
        disk.size_mib(str(directory), 0)


def test_a_disk_of_an_image(home: str, directory: Path) -> None:
    """Whatever becomes of the image once it is open."""
    build(home, _content(directory))
    with ExitStack() as undo:
        image = images.find_open(undo, home, _content(directory))
        assert image is not None
        vanish(Path(image.path).parent)
        made = disk.open_copy(transport.blk(image.path, image.size_bytes >> 20, image=image), "/nowhere", "/nowhere")
        assert files.content_digest(made) == files.content_digest(image.fd)
        os.close(made)


@pytest.mark.usefixtures("private")
def test_a_directory_with_something_mounted_inside(directory: Path) -> None:
    mount("none", str(directory / "etc"), "tmpfs")
    with pytest.raises(ConfigError, match=rf"something is mounted at {directory}/etc \(9p shows"):
        disk.size_mib(str(directory), 0)


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="is missing"):
        disk.size_mib(str(tmp_path / "gone"), 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(HostError, match=r"copy the root file system .*gone: .*gone: is missing"):
        disk.open_copy(transport.blk(str(tmp_path / "gone"), 64), str(tmp_path), str(tmp_path / "empty"))


@pytest.mark.parametrize(("tool", "package"), [("mkfs.ext4", "e2fsprogs"), ("cp", "coreutils")])
def test_without_a_tool(
    home: str, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str, package: str
) -> None:
    (tmp_path / "bin").mkdir()
    for name in {"mkfs.ext4", "cp", "setpriv"} - {tool}:
        found = process.find_tool(name)
        assert found is not None
        (tmp_path / "bin" / name).symlink_to(found)
    monkeypatch.setattr(process, "TOOL_DIRECTORIES", (str(tmp_path / "bin"),))
    with pytest.raises(HostError, match=rf"{tool}: is not in .* \(apt-get install {package}\)"):
        build(home, _content(directory))
    assert names(home) == set()


def test_without_loop_devices(home: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_CONTROL", "/dev/loop-control-is-missing")
    with pytest.raises(HostError, match=r"no loop device for .*image: .*modprobe loop"):
        build(home, _content(directory))
    assert names(home) == set()


def test_size_is_by_data_not_by_holes(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(5 << 30)
        file.seek(4 << 30)
        file.write(b"data")
    tree = Tree(str(tmp_path))
    assert tree.size_bytes == 5 << 30
    assert tree.data_bytes <= MIB
    assert Ext4(10).size_mib(tree) == 64
