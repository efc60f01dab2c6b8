"""Root file systems that are not there, cannot be read, or are of an unusual kind: they work as with runc, or one line says what is wrong."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import stat
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from rundctl.engine import settings
from rundctl.engine.rootfs.images import content
from rundctl.host import manifest as manifests
from rundctl.oci import options

from . import rootfs_data
from .conftest import Cli, JsonDict, eventually
from .test_rootfs_contract import SOURCES

pytestmark = pytest.mark.vm
LIVE = ("9p", "virtiofs")
TRANSPORTS = (*LIVE, "erofs", "blk")
LEVELS = 20
IMAGE_MIB = 384  # the least that mkfs.xfs makes is 300
libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(params=TRANSPORTS)
def lower(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def on(cli: Cli, bundle: Callable[..., Path], lower: str) -> Callable[..., Path]:
    """A bundle on another root."""

    def make(root: Path | str, *args: str, readonly: bool = False) -> Path:
        def change(config: JsonDict) -> None:
            config["root"] = {"path": str(root), "readonly": readonly}
            config["annotations"] = {options.LOWER: lower}
            if lower == "erofs":
                config["annotations"][options.IMMUTABLE] = str(root)

        return bundle(*args, change=change)

    return make


def _refused(cli: Cli, where: Path) -> str:
    lines = cli("create", "--bundle", str(where), "e", code=1).stderr.decode().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def _mount(kind: str, target: Path, data: str, source: str = "volume") -> None:
    if libc.mount(source.encode(), os.fsencode(target), kind.encode(), 0, data.encode()) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextmanager
def _mounted(target: Path, *arguments: str | Path) -> Iterator[Path]:
    """mount(8), until the end."""
    target.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", *arguments, target], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True)  # not busy: nothing of ours holds it


@pytest.fixture
def fuse(tmp_path: Path) -> Iterator[Callable[[int, bool], Path]]:
    """Mount a FUSE file system that nobody serves."""
    with ExitStack() as stack:

        def mount(owner: int, alive: bool) -> Path:
            target = tmp_path / f"fuse{owner}"
            target.mkdir()
            fd = os.open("/dev/fuse", os.O_RDWR)
            _mount("fuse", target, f"fd={fd},rootmode=40000,user_id={owner},group_id={owner}")
            stack.callback(subprocess.run, ["umount", "-l", target], check=True)
            if alive:
                stack.callback(os.close, fd)
            else:
                os.close(fd)
            return target

        yield mount


def _nothing(path: Path) -> Path:
    return path


def _file(path: Path) -> Path:
    path.write_text("not a directory")
    return path


def _dangling(path: Path) -> Path:
    path.symlink_to("nowhere")
    return path


def _loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_nothing, "no such file or directory"),
        (_file, "not a directory"),
        (_dangling, "no such file or directory"),
        (_loop, "too many levels of symbolic links"),
    ],
)
def test_no_directory(cli: Cli, on, tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    root = make(tmp_path / "no-root")
    line = _refused(cli, on(root, "/bin/true"))
    assert "root.path" in line
    assert str(root) in line
    assert words in line.lower()


def test_a_root_that_root_may_not_read(cli: Cli, on, fuse) -> None:
    """Of another user's FUSE mount, without allow_other."""
    root = fuse(12345, alive=True)
    line = _refused(cli, on(root, "/bin/true"))
    assert str(root) in line
    assert "permission denied" in line.lower()


def test_a_root_whose_server_has_died(cli: Cli, on, fuse) -> None:
    root = fuse(0, alive=False)
    line = _refused(cli, on(root, "/bin/true"))
    assert str(root) in line
    assert "transport endpoint is not connected" in line.lower()


def test_an_empty_root(cli: Cli, on, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = cli("run", "--bundle", str(on(tmp_path / "empty", "/bin/true")), "e", code=1)
    assert b"stat /bin/true: no such file or directory" in done.stderr
    assert list((tmp_path / "empty").iterdir()) == []  # nor were mount points made in it


@pytest.fixture
def image(rootfs: Path, tmp_path: Path) -> Path:
    """A root of this test's own."""
    copy = tmp_path / "image"
    subprocess.run(["cp", "-a", rootfs, copy], check=True)
    return copy


def test_mounts_inside_are_shown(cli: Cli, on, image: Path, lower: str) -> None:
    """As with runc, which binds a rootfs recursively; what the container writes there stays in the container all the same. An image, or a copy, is of one file system."""
    (image.parent / "link").symlink_to("image")
    (image / "odd na\\me").mkdir()
    with _mounted(image / "odd na\\me", "-t", "tmpfs", "inside") as inside:
        if lower not in LIVE:
            for root in (image, f"{image}/", image.parent / "link", f"{image.parent}/link/../image"):
                said = _refused(cli, on(root, "/bin/true"))
                assert "something is mounted" in said
                assert str(inside) in said
            return
        (inside / "file").write_text("of the inner mount\n")
        script = "cd '/odd na\\me'; cat file; echo changed > file; cat file; echo > new"
        done = cli("run", "--bundle", str(on(image.parent / "link", "/bin/sh", "-c", script)), "e")
        assert done.stdout == b"of the inner mount\nchanged\n"
        assert (inside / "file").read_text() == "of the inner mount\n"
        assert not (inside / "new").exists()


@pytest.mark.parametrize("lower", ["erofs", "blk"], indirect=True)
def test_a_mount_inside_later_than_the_image(cli: Cli, bundle, image: Path, lower: str) -> None:
    """An image of what was declared not to change shows nothing of it: `auto` shares the directory live, as long as that is mounted."""

    def on(name: str) -> str:
        def change(config: JsonDict) -> None:
            config["root"] = {"path": str(image), "readonly": False}
            config["annotations"] = {options.LOWER: name, options.IMMUTABLE: str(image)}

        return str(bundle("/bin/ls", "/srv", change=change))

    (image / "srv").mkdir()
    assert cli("run", "--bundle", on(lower), "e").stdout == b""
    with _mounted(image / "srv", "-t", "tmpfs", "inside") as inside:
        (inside / "file").touch()
        lines = cli("run", "--bundle", on(lower), "e", code=1).stderr.decode().splitlines()
        assert len(lines) == 1
        assert "something is mounted" in lines[0]
        assert str(inside) in lines[0]
        done = cli("--debug", "run", "--bundle", on("auto"), "e")
        assert done.stdout == b"file\n"
        assert f"rootfs by 9p (9p): something is mounted inside of it, at {inside}" in done.stderr.decode()
    assert cli("run", "--bundle", on(lower), "e").stdout == b""


@pytest.mark.parametrize("lower", ["erofs"], indirect=True)
@pytest.mark.parametrize(
    "damage", [lambda path: os.truncate(path, 8192), Path.unlink, lambda path: path.write_bytes(b"")]
)
def test_a_damaged_image_is_made_anew(cli: Cli, on, image: Path, lower: str, damage: Callable[[Path], None]) -> None:
    """Before a guest has it; of blk: test_blk.py."""
    where = on(image, "/bin/cat", "/etc/group")
    expected = cli("run", "--bundle", str(where), "e").stdout
    found = content.find(settings.load().home, content.Content.of_directory(str(image), str(image)))
    assert found
    damage(Path(found.path))
    assert cli("run", "--bundle", str(where), "e").stdout == expected
    assert os.stat(found.path).st_size == found.size_bytes


@pytest.mark.parametrize("lower", ["erofs"], indirect=True)
def test_an_image_whose_disk_has_rotted(cli: Cli, on, image: Path, lower: str) -> None:
    """What a start does not look for: the guest cannot mount it, and one line says what finds and mends it."""
    where = on(image, "/bin/true")
    cli("run", "--bundle", str(where), "e")
    found = content.find(settings.load().home, content.Content.of_directory(str(image), str(image)))
    assert found
    with open(found.path, "r+b") as file:
        file.write(bytes(4096))
    manifest = Path(found.path).with_name(manifests.NAME)
    facts = json.loads(manifest.read_text())
    facts["files"]["image"]["identity"] = manifests.file_identity(found.path)
    manifest.write_text(json.dumps(facts))
    done = cli("run", "--bundle", str(where), "e", code=1)
    assert done.stderr.decode().count("\n") == 1
    assert b"mount erofs on /lower: invalid argument" in done.stderr
    assert b"rundctl image verify" in done.stderr
    assert found.key in cli("image", "verify", code=1).stdout.decode().split()
    cli("run", "--bundle", str(where), "e")


def test_a_root_that_disappears_before_start(cli: Cli, on, image: Path) -> None:
    """It is the container's business, as it is with runc: nothing hangs, and all can be deleted."""
    cli.create("e", on(image, "/bin/sleep", "1000"))
    shutil.rmtree(image)
    cli("start", "e", code=None)
    cli("kill", "e", "KILL", code=None)
    cli.wait_status("e", "stopped")
    cli("delete", "e")


def test_a_root_that_disappears_while_used(cli: Cli, on, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = (
        "trap 'ls /etc/passwd && cat /etc/group; echo code $?; exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    )
    with out.open("wb") as stdout:
        cli.create("e", on(image, "/bin/sh", "-c", script), stdout=stdout)
    cli("start", "e")
    eventually(lambda: out.read_bytes() == b"ready\n", "it runs")
    shutil.rmtree(image)
    cli("kill", "e", "TERM")
    cli("kill", "e", "KILL", code=None)
    cli.wait_status("e", "stopped")
    cli("delete", "e")


def _on_tmpfs(image: Path, target: Path, stack: ExitStack) -> None:
    stack.enter_context(_mounted(target, "-t", "tmpfs", "root"))
    subprocess.run(["cp", "-a", f"{image}/.", target], check=True)


def _on_overlay(image: Path, target: Path, stack: ExitStack) -> None:
    parts = [target.with_name(name) for name in ("upper", "work")]
    for part in parts:
        part.mkdir()
    data = f"lowerdir={image},upperdir={parts[0]},workdir={parts[1]}"
    stack.enter_context(_mounted(target, "-t", "overlay", "-o", data, "overlay"))


def _on_xfs(image: Path, target: Path, stack: ExitStack) -> None:
    disk = target.with_name("disk")
    with disk.open("wb") as file:
        file.truncate(IMAGE_MIB << 20)
    subprocess.run(["mkfs.xfs", "-q", disk], check=True)
    stack.enter_context(_mounted(target, "-o", "loop", disk))
    subprocess.run(["cp", "-a", f"{image}/.", target], check=True)


def _on_erofs(image: Path, target: Path, stack: ExitStack) -> None:
    disk = target.with_name("disk")
    subprocess.run(["mkfs.erofs", "--quiet", disk, image], check=True, stdout=subprocess.DEVNULL)
    stack.enter_context(_mounted(target, "-o", "loop,ro", "-t", "erofs", disk))


def _squashed(image: Path, target: Path) -> Path:
    _need("mksquashfs", "squashfs-tools")
    disk = target.with_name("disk")
    subprocess.run(["mksquashfs", image, disk, "-quiet", "-no-progress"], check=True, stdout=subprocess.DEVNULL)
    return disk


def _on_squashfs(image: Path, target: Path, stack: ExitStack) -> None:
    stack.enter_context(_mounted(target, "-o", "loop,ro", "-t", "squashfs", _squashed(image, target)))


def _on_fuse(image: Path, target: Path, stack: ExitStack) -> None:
    _need("squashfuse", "squashfuse")
    disk = _squashed(image, target)
    target.mkdir()
    subprocess.run(["squashfuse", disk, target], check=True)
    stack.callback(subprocess.run, ["umount", target], check=True)


def _need(program: str, package: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"no {program}: apt-get install {package}")


@pytest.mark.parametrize(
    "put", [_on_tmpfs, _on_overlay, _on_xfs, _on_erofs, _on_squashfs, _on_fuse], ids=lambda put: put.__name__[4:]
)
def test_an_unusual_file_system(cli: Cli, on, image: Path, tmp_path: Path, put: Callable[..., None]) -> None:
    """Read-only ones included: the container writes all the same."""
    script = (
        "cat /etc/passwd; echo new > /etc/passwd; rm -r /usr; mkdir /usr; ls /usr; cat /etc/passwd; ls /bin | wc -l"
    )
    with ExitStack() as stack:
        put(image, tmp_path / "root-of-it", stack)
        done = cli("run", "--bundle", str(on(tmp_path / "root-of-it", "/bin/sh", "-c", script)), "e")
        expected = f"{(image / 'etc/passwd').read_text()}new\n{len(os.listdir(image / 'bin'))}\n"
        assert done.stdout.decode() == expected
        assert (tmp_path / "root-of-it/etc/passwd").read_bytes() == (image / "etc/passwd").read_bytes()


def test_the_longest_name_and_a_path_longer_than_path_max(cli: Cli, on, image: Path, lower: str) -> None:
    """255 bytes, and 20 levels of that: what the host can hold, the container sees."""
    name = "n" * 255
    (image / "deep").mkdir()
    fd = os.open(image / "deep", os.O_PATH)
    for _ in range(LEVELS):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = below
    with os.fdopen(os.open("bottom", os.O_WRONLY | os.O_CREAT, dir_fd=fd), "w") as file:
        file.write("bottom")
    os.close(fd)
    if lower not in LIVE:
        assert "an image takes paths of at most 4095 bytes" in _refused(cli, on(image, "/bin/true"))
        return
    subprocess.run(["gcc", "-static", "-O1", *SOURCES, "-o", image / "probe"], check=True)
    told = cli("run", "--bundle", str(on(image, "/probe", "manifest", "/deep")), "e").stdout.decode().splitlines()
    entries = rootfs_data.parse(told)
    assert len(entries) == LEVELS + 1
    assert entries["/deep" + f"/{name}" * LEVELS + "/bottom"].data == f"{zlib.crc32(b'bottom'):08x}"


def test_a_whiteout_in_the_root_is_one_in_the_container(cli: Cli, on, image: Path, lower: str) -> None:
    """A character device 0:0 means to overlayfs that there is nothing; runc on a plain directory shows the device, which nobody can open."""
    os.mknod(image / "whiteout", stat.S_IFCHR, os.makedev(0, 0))
    done = cli("run", "--bundle", str(on(image, "/bin/sh", "-c", "ls -d /whiteout || ls /")), "e")
    if lower == "blk":  # as runc's
        assert done.stdout == b"/whiteout\n"
        return
    assert b"No such file" in done.stderr
    assert b"whiteout" not in done.stdout


@pytest.mark.parametrize("spelling", ["{}/", "{}/../image/.", "link"])
def test_roots_by_other_names(cli: Cli, on, image: Path, tmp_path: Path, spelling: str) -> None:
    (tmp_path / "link").symlink_to("image")
    root = spelling.format(image) if spelling != "link" else tmp_path / "link"
    assert cli("run", "--bundle", str(on(root, "/bin/cat", "/etc/group")), "e").stdout.startswith(b"root:")
