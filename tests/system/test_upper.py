"""The upper layer in real VMs: its size, what happens when it or the host is full, what deleting gives back, how it is copied."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rundctl.engine import settings
from rundctl.engine.template import store, upper
from rundctl.host import ficlone, files
from rundctl.host import manifest as manifests

from .conftest import RUNDCTL, Cli, eventually
from .disks import disk, fill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_UPPER_MIB = 64
_MIB = 1 << 20


@pytest.fixture(params=["ext4", "store"])
def home(
    request: pytest.FixtureRequest, tmp_path: Path, template: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A home of its own with small upper layers: on ext4, and in a reflink store on ext4."""
    del template
    usual = settings.load().home
    config = tmp_path / "config.toml"
    config.write_text(f"upper_mib = {_UPPER_MIB}\n")
    with disk(tmp_path, "ext4", 2048) as point:
        home = point / "home"
        home.mkdir()
        (home / "kernels").symlink_to(f"{usual}/kernels")
        monkeypatch.setenv("RUNDCTL_HOME", str(home))
        monkeypatch.setenv("RUNDCTL_CONFIG", str(config))
        if request.param == "store":
            subprocess.run([RUNDCTL, "storage", "init", "--size", "512M"], check=True, capture_output=True)
        subprocess.run([RUNDCTL, "template", "build"], check=True, capture_output=True)
        yield home
        if request.param == "store":
            subprocess.run([RUNDCTL, "storage", "remove"], check=True, capture_output=True)


def _upper_of(cli: Cli, container: str) -> str:
    """Path, through QEMU's descriptors, of the nameless file with a running container's upper layer."""
    shim = cli.state(container)["pid"]
    (machine,) = Path(f"/proc/{shim}/task/{shim}/children").read_text().split()
    found = []
    for link in Path(f"/proc/{machine}/fd").iterdir():
        status = link.stat()
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 0 and status.st_size == _UPPER_MIB * _MIB:
            found.append((status.st_ino, str(link)))
    assert len({inode for inode, _ in found}) == 1, found
    return found[0][1]


def _taken(path: str | Path) -> int:
    """Bytes a file takes on disk."""
    return os.stat(path).st_blocks * 512


def _on_disk(image: Path) -> int:
    """Bytes the store takes once it has written, and discarded, what it would in half a minute; 0 without a store."""
    if not image.exists():
        return 0
    subprocess.run(["sync", "--file-system", image.parent / "templates"], check=True)
    return _taken(image)


class Steps:
    """A container that runs a script step by step, told by files in a directory that both see."""

    def __init__(self, cli: Cli, bundle: Callable[..., Path], directory: Path, name: str, *steps: str) -> None:
        directory.mkdir()
        self._directory = directory
        self.name = name
        waits = "".join(f"while [ ! -e /steps/go{n} ]; do sleep 0.1; done; {{ {step}; }} >/steps/out{n} 2>&1; echo $? >/steps/code{n}.new; mv /steps/code{n}.new /steps/code{n}\n" for n, step in enumerate(steps))  # fmt: skip

        def change(config: dict) -> None:
            config["mounts"].append(
                {"destination": "/steps", "type": "bind", "source": str(directory), "options": ["rbind", "rw"]}
            )

        cli.create(name, bundle("/bin/sh", "-c", f"{waits} sleep 1000", change=change))
        cli("start", name)

    def do(self, number: int) -> tuple[int, str]:
        """Let a step go: its exit code and output."""
        (self._directory / f"go{number}").touch()
        code = self._directory / f"code{number}"
        eventually(code.exists, f"{self.name}: step {number}", 90)
        return int(code.read_text()), (self._directory / f"out{number}").read_text()


def test_size_is_configured_and_part_of_the_shape(
    home: Path, sh: Callable[..., subprocess.CompletedProcess[bytes]]
) -> None:
    (entry,) = store.entries(str(home))
    assert entry.manifest["shape"]["upper_mib"] == _UPPER_MIB
    size_kib = int(sh("df -k / | tail -n 1").stdout.split()[1])
    assert _UPPER_MIB * 1024 * 3 // 4 < size_kib <= _UPPER_MIB * 1024


def test_full_harms_nobody_else(home: Path, cli: Cli, bundle: Callable[..., Path], tmp_path: Path) -> None:
    fills = "dd if=/dev/zero of=/big bs=1M count=100"
    writes = "dd if=/dev/zero of=/some bs=1M count=30 && sync && sha256sum </some"
    one = Steps(cli, bundle, tmp_path / "one", "one", fills, "rm /big && echo again >/small && cat /small")
    two = Steps(cli, bundle, tmp_path / "two", "two", writes, "sha256sum </some")
    code, said = one.do(0)
    assert code != 0
    assert "No space left on device" in said
    code, said = two.do(0)
    assert code == 0, said
    assert two.do(1) == (0, said.splitlines()[-1] + "\n")
    assert one.do(1) == (0, "again\n"), "who is full deletes, and goes on"
    for name in ("one", "two"):
        assert cli.status(name) == "running"
        cli("delete", "--force", name)


def test_deleting_gives_space_back(home: Path, cli: Cli, bundle: Callable[..., Path], tmp_path: Path) -> None:
    writes = "dd if=/dev/urandom of=/big bs=1M count=40 && sync"
    steps = Steps(cli, bundle, tmp_path / "steps", "c1", writes, "rm /big && sync")
    path, image = _upper_of(cli, "c1"), home / "storage.img"
    before = _taken(path)
    assert steps.do(0)[0] == 0
    written = _taken(path)
    assert written - before >= 40 * _MIB
    on_host = _on_disk(image)
    assert steps.do(1)[0] == 0
    eventually(lambda: _taken(path) - before < 4 * _MIB, "a hole where the file was")
    if image.exists():
        eventually(lambda: on_host - _on_disk(image) > 30 * _MIB, "a hole in the store's file as well")
    cli("delete", "--force", "c1")
    assert not [line for line in os.listdir(home / "templates") if line not in (".lock", *_keys(home))]


def _keys(home: Path) -> list[str]:
    return [entry.key for entry in store.entries(str(home))]


def test_a_full_host_is_an_error_in_the_guest(
    home: Path, cli: Cli, bundle: Callable[..., Path], tmp_path: Path
) -> None:
    """QEMU would stop the VM; it must go on, hear of the error, and be killed as any other. So must its neighbour."""
    writes = "dd if=/dev/urandom of=/big bs=1M count=40 conv=fsync; sync; true"
    one = Steps(cli, bundle, tmp_path / "one", "one", writes, "echo alive")
    full = fill(home / "templates")
    one.do(0)
    assert one.do(1) == (0, "alive\n")
    assert _taken(_upper_of(cli, "one")) < 20 * _MIB
    full.unlink()
    two = Steps(cli, bundle, tmp_path / "two", "two", writes, "sha256sum </big >/dev/null && echo well")
    assert two.do(0)[0] == 0
    assert two.do(1) == (0, "well\n")
    for name in ("one", "two"):
        cli("delete", "--force", name)


def test_copies(tmp_path: Path) -> None:
    """For real on both: shared extents on XFS, the data alone on ext4; private in both."""
    for kind in ("xfs", "ext4"):
        with disk(tmp_path, kind, 512) as point:
            image = str(point / "image")
            upper.format_image(image, 2048)
            assert os.listdir(point) in (["image"], ["lost+found", "image"], ["image", "lost+found"])
            data = _taken(image)
            assert data < 200 << 10, "few data, or every start copies many"
            assert ficlone.works_in(str(point)) is (kind == "xfs")
            os.sync()
            free = os.statvfs(point).f_bfree
            copies = [upper.clone(image, str(point)) for _ in range(20)]
            try:
                os.sync()
                cost = (free - os.statvfs(point).f_bfree) * 4096
                assert cost < 10 * data if kind == "xfs" else 19 * data < cost < 30 * data
                with open(image, "rb") as file:
                    wanted = files.content_digest(file.fileno())
                    for copy in copies:
                        assert files.content_digest(copy) == wanted
                        os.pwrite(copy, b"mine", 1024)
                    assert files.content_digest(file.fileno()) == wanted
                assert os.fstat(copies[0]).st_nlink == 0
                assert files.content_digest(copies[0]) != wanted
            finally:
                for fd in copies:
                    os.close(fd)


def test_the_template_has_its_image_in_each_allocation_group(home: Path) -> None:
    """So that clones made at once meet at no lock of XFS: each copy has blocks of its own, and in a store those of another group."""
    (template,) = (home / "templates").glob("*/" + manifests.NAME)
    images = [template.parent / name for name in store.UPPERS]
    described = json.loads(template.read_text())["files"]
    assert len({described[name]["digest"] for name in store.UPPERS}) == 1
    assert not any("shared" in _tool("filefrag", "-v", str(image)) for image in images)
    if (home / "storage.img").exists():
        assert sorted(map(_groups, images)) == [["0"], ["1"], ["2"], ["3"]]


def _groups(file: Path) -> list[str]:
    """XFS's allocation groups that a file's blocks are in."""
    rows = [line.split() for line in _tool("xfs_bmap", "-v", str(file)).splitlines()[2:]]
    return sorted({row[3] for row in rows if row[2] != "hole"})


def _tool(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def test_read_only_and_full(tmp_path: Path) -> None:
    """Each is one clear error, and no descriptor stays."""
    with disk(tmp_path, "ext4", 64) as point:
        image = str(point / "image")
        upper.format_image(image, 64)
        before = len(os.listdir("/proc/self/fd"))
        full = fill(point)
        with pytest.raises(Exception, match=f"make the upper layer in {point}: no space left on device"):
            upper.clone(image, str(point))
        full.unlink()
        subprocess.run(["mount", "-o", "remount,ro", point], check=True)
        with pytest.raises(Exception, match=f"make the upper layer in {point}: read-only file system"):
            upper.clone(image, str(point))
        assert len(os.listdir("/proc/self/fd")) == before


def test_the_bench_s_goals_have_a_base(tmp_path: Path) -> None:
    """One extent costs a reflink what copying 4 KiB costs: more than a handful would miss the goal of docs/rootfs.md."""
    image = tmp_path / "image"
    upper.format_image(str(image), 2048)
    with image.open("rb") as file:
        assert len(list(files.data_extents(file.fileno(), 2048 * _MIB))) <= 4
    check = subprocess.run(["fsck.ext4", "-fn", image], capture_output=True, text=True, check=False)
    assert check.returncode == 0, json.dumps(check.stdout)
