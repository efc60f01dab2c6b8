"""A root file system on a disk of the container's own, and images of both kinds: what the contract does not ask of every transport, in real VMs."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rundctl.engine import settings
from rundctl.engine.rootfs.images import content as images
from rundctl.engine.rootfs.images.content import Content
from rundctl.oci import options

from .conftest import Cli, JsonDict, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.vm
_UPPER_MIB = 64
_MIB = 1 << 20


@pytest.fixture
def own(rootfs: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "own"
    shutil.copytree(rootfs, copy, symlinks=True)
    return copy


COPIED, OF_AN_IMAGE, EROFS = "copied", "of an image", "erofs"


@pytest.fixture(params=[COPIED, OF_AN_IMAGE])
def on(request: pytest.FixtureRequest, own: Path, spec: JsonDict) -> str:
    """All of this test's containers are on it, by blk or by erofs."""
    spec["root"] = {"path": str(own), "readonly": False}
    spec["annotations"] = {options.LOWER: "erofs" if request.param == EROFS else "blk"}
    if request.param != COPIED:
        spec["annotations"][options.IMMUTABLE] = str(own)
    return str(request.param)


def _image(on: str, own: Path) -> Path | None:
    host = settings.load()
    content = Content.of_directory(str(own), str(own))
    found = images.find(host.home, content if on == EROFS else content.with_room(host.upper_mib))
    return Path(found.path) if found else None


def _machine(cli: Cli, container: str) -> int:
    shim = cli.state(container)["pid"]
    (machine,) = Path(f"/proc/{shim}/task/{shim}/children").read_text().split()
    return int(machine)


def _disk_of(cli: Cli, container: str) -> os.stat_result:
    """The nameless file that is a running container's only disk."""
    found = {}
    for link in Path(f"/proc/{_machine(cli, container)}/fd").iterdir():
        status = link.stat()
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 0 and status.st_size >= 64 * _MIB:
            found[status.st_ino] = status
    (disk,) = found.values()
    return disk


def test_all_of_it_is_one_ext4_that_dies_with_the_vm(sh, on: str, own: Path) -> None:
    script = (
        "grep ' / ' /proc/mounts; ls /; ls -A /etc; echo more > /etc/hosts; rm -r /usr; cat /sys/class/block/vd*/size"
    )
    before = sorted(os.listdir(own)), sorted(os.listdir(own / "etc"))
    for _ in range(2):
        lines = sh(script).stdout.decode().split("\n")
        assert " / ext4 rw," in lines[0]
        assert sorted(lines[1:-2]) == sorted([*before[0], *before[1]])
        assert int(lines[-2]) * 512 >= settings.load().upper_mib * _MIB
    assert (own / "etc/hosts").read_text() == "127.0.0.1 localhost\n"
    assert (own / "usr").is_dir()
    assert (_image(on, own) is not None) == (on == OF_AN_IMAGE)


@pytest.mark.usefixtures("on")
def test_volumes_and_a_read_only_root(sh, tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/there").write_text("there\n")

    def change(config: JsonDict) -> None:
        config["root"]["readonly"] = True
        source = {"source": str(tmp_path / "volume"), "type": "bind", "options": ["bind"]}
        config["mounts"].append({"destination": "/data", **source})

    done = sh("cat /data/there; echo back > /data/back; touch /new || echo read-only", change=change)
    assert done.stdout == b"there\nread-only\n"
    assert (tmp_path / "volume/back").read_text() == "back\n"


@pytest.mark.usefixtures("on")
def test_a_machine_id_and_a_cold_boot(sh) -> None:
    script = "cat /etc/machine-id; stat -c %i /"
    first, second, cold = (sh(script, *flags).stdout.split() for flags in ((), (), ("--template=off",)))
    assert first[1] == second[1] == cold[1] == b"2"  # ext4's root
    assert len({first[0], second[0], cold[0]}) == 3
    assert all(len(each[0]) == 32 for each in (first, second, cold))


def test_persistent_is_refused(cli: Cli, on: str, bundle: Callable[..., Path]) -> None:
    where = bundle("/bin/true", change=lambda config: config["annotations"].update({options.ROOTFS: "persistent"}))
    said = cli("create", "--bundle", str(where), "p", code=1).stderr.decode()
    assert "dies with the VM" in said if on == COPIED else "does not change" in said


@pytest.mark.usefixtures("on")
def test_full_is_enospc_and_what_is_deleted_is_free_again(sh, configure: Callable[..., None]) -> None:
    configure(upper_mib=_UPPER_MIB)
    script = (
        f"dd if=/dev/zero of=/a bs=1M count={_UPPER_MIB} 2>/dev/null && echo room; dd if=/dev/zero of=/b bs=1M 2>&1 | grep -o 'No space.*'; "
        f"rm /a /b; dd if=/dev/zero of=/c bs=1M count={_UPPER_MIB} 2>/dev/null && echo again"
    )
    assert sh(script).stdout.decode().splitlines() == ["room", "No space left on device", "again"]


def test_what_is_deleted_is_given_back_to_the_host(cli: Cli, on: str, bundle, tmp_path: Path) -> None:
    del on
    (tmp_path / "steps").mkdir()

    def change(config: JsonDict) -> None:
        source = {"source": str(tmp_path / "steps"), "type": "bind", "options": ["bind"]}
        config["mounts"].append({"destination": "/steps", **source})

    wait = "until [ -e /steps/go ]; do sleep 0.1; done"
    script = f"dd if=/dev/urandom of=/big bs=1M count=40; sync; touch /steps/written; {wait}; rm /big; sync; touch /steps/removed; exec sleep 1000"
    cli.create("d", bundle("/bin/sh", "-c", script, change=change))
    cli("start", "d")
    eventually((tmp_path / "steps/written").exists, "written")
    full = _disk_of(cli, "d").st_blocks * 512
    (tmp_path / "steps/go").touch()
    eventually((tmp_path / "steps/removed").exists, "removed")
    eventually(lambda: _disk_of(cli, "d").st_blocks * 512 < full - 35 * _MIB, "its blocks are the host's again")


@pytest.mark.parametrize("on", [OF_AN_IMAGE, EROFS], indirect=True)
@pytest.mark.parametrize("damage", ["truncated", "changed", "removed"])
def test_a_damaged_image_is_made_anew(sh, on: str, own: Path, damage: str) -> None:
    assert sh("cat /etc/hosts").stdout == b"127.0.0.1 localhost\n"
    image = _image(on, own)
    assert image is not None
    if damage == "removed":
        image.unlink()
    else:
        image.chmod(0o600)
        if damage == "truncated":
            os.truncate(image, _MIB)
        else:
            with image.open("r+b") as file:
                file.write(bytes(4096))
    assert _image(on, own) is None
    assert sh("cat /etc/hosts").stdout == b"127.0.0.1 localhost\n"
    assert _image(on, own) is not None


@pytest.mark.parametrize("on", [COPIED], indirect=True)
def test_a_create_that_is_killed_amid_its_copy_leaves_nothing(cli: Cli, on: str, own: Path, bundle) -> None:
    del on
    for number in range(300):
        (own / f"file{number}").write_bytes(bytes(_MIB))
    devices = _loop_files()
    create = cli.popen("create", "--bundle", str(bundle("/bin/true")), "k")
    (copy,) = eventually(lambda: _copies(create.pid), "cp runs")
    create.kill()
    create.wait()
    eventually(lambda: not Path(f"/proc/{copy}").exists(), "cp ends with it")
    eventually(lambda: _loop_files() <= devices, "no loop device is left")
    cli("delete", "--force", "k")


def _copies(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children if Path(f"/proc/{child}/comm").read_text() == "cp\n"]
    except OSError:
        return []


def _loop_files() -> set[str]:
    """Nameless files behind loop devices."""
    listed = subprocess.run(
        ["losetup", "--noheadings", "--output", "BACK-INO,BACK-FILE"], check=True, capture_output=True
    )
    return {line for line in listed.stdout.decode().splitlines() if "/fd/" in line}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home on a file system of its own."""
    home = tmp_path / "small"
    usual = settings.load().home
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "small", home], check=True)
    for name in ("kernels", "qemu"):
        (home / name).symlink_to(f"{usual}/{name}")
    monkeypatch.setenv("RUNDCTL_HOME", str(home))
    yield home
    subprocess.run(["umount", home], check=True)


@pytest.mark.parametrize("on", [COPIED, OF_AN_IMAGE, EROFS], indirect=True)
@pytest.mark.usefixtures("on")
def test_no_space_for_it(cli: Cli, sh, own: Path, bundle, small: Path) -> None:
    """Neither for an image, nor for a copy: one line that says so, and nothing is left."""
    sh("true")  # there is room for a template
    (own / "big").write_bytes(os.urandom(40 * _MIB))
    with (small / "ballast").open("wb") as file:
        space = os.statvfs(small)
        file.write(bytes(space.f_bavail * space.f_frsize - 20 * _MIB))
    before = sorted(small.rglob("*"))
    done = cli("create", "--bundle", str(bundle("/bin/true")), "s", code=1)
    (line,) = done.stderr.decode().splitlines()
    assert "No space left" in line or "MiB are free" in line or "Input/output error" in line
    assert "rundctl image prune" in line
    assert sorted(small.rglob("*")) == before
    assert "No such" not in line


@pytest.mark.parametrize("on", [COPIED, OF_AN_IMAGE, EROFS], indirect=True)
def test_a_home_that_is_read_only(cli: Cli, sh, on: str, own: Path, bundle, small: Path) -> None:
    """What is there is used; what would have to be made is refused with one line."""
    assert sh("echo first").stdout == b"first\n"
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    done = cli("create", "--bundle", str(bundle("/bin/true")), "r", code=1)
    (line,) = done.stderr.decode().splitlines()
    assert "read-only file system" in line.lower()
    assert str(small) in line
    assert (_image(on, own) is not None) == (on != COPIED)
