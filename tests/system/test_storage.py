"""The reflink store on a host that has none: a small ext4 disk with a home on it. Made, killed, mounted, used by real VMs, removed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rundctl.engine import settings
from rundctl.engine.template import reflink_store
from rundctl.engine.template import store as template_store
from rundctl.host import files, loop
from rundctl.host import manifest as manifests

from .conftest import DEADLINE_S, RUNDCTL, Cli
from .disks import disk, fill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_KEY = "0123456789abcdef0123456789abcdef"
_DISK_MIB = 3072
_STORE = 1 << 30  # bytes


@pytest.fixture
def home(tmp_path: Path, template: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home on ext4 with the host's kernels and what is remembered of them."""
    del template
    usual = settings.load().home
    with disk(tmp_path, "ext4", _DISK_MIB) as point:
        home = point / "home"
        home.mkdir()
        (home / "kernels").symlink_to(f"{usual}/kernels")
        monkeypatch.setenv("RUNDCTL_HOME", str(home))
        yield home
        assert not (home / "storage.img").exists()


@pytest.fixture
def store(home: Path) -> Iterator[Path]:
    """The same with a store, removed afterwards."""
    _call("storage", "init", "--size", "1G")
    yield home
    if (home / "storage.img").exists():
        _call("storage", "remove")


def _call(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([RUNDCTL, *arguments], capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == code, (arguments, done.stdout, done.stderr)
    return done


def _refused(*arguments: str) -> str:
    """The one line of an error."""
    (line,) = _call(*arguments, code=1).stderr.splitlines()
    return line


def _status() -> dict:
    return json.loads(_call("storage", "status", "--json").stdout)


def _make_up(home: Path, key: str = _KEY) -> Path:
    """A template of which only the store need believe that it is one."""
    directory = home / "templates" / key
    template_store.make_directories(str(directory))
    described = {}
    for name in template_store.FILES:
        path = directory / name
        with path.open("wb") as file:
            file.write(name.encode() * 1000)
            file.truncate(1 << 20)
        path.chmod(0o400)
        with path.open("rb") as file:
            digest = files.content_digest(file.fileno())
        described[name] = {"digest": digest, "identity": manifests.file_identity(str(path))}
    manifest = {"format": template_store.FORMAT, "key": key, "files": described}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    os.utime(directory / "manifest.json", (1, 1))
    return directory


def _intact(home: Path) -> list[str]:
    return [entry.key for entry in template_store.entries(str(home)) if entry.intact]


def test_from_nothing_to_nothing(home: Path) -> None:
    assert _status()["state"] == "none"
    directory = _make_up(home)
    before = {name: (directory / name).read_bytes() for name in template_store.FILES}
    damaged = _make_up(home, "f" * 32)
    os.truncate(damaged / "memory", 1)
    made = _call("storage", "init", "--size", "1G")
    assert f"template {'f' * 32} is damaged" in made.stderr
    found = _status()
    assert found["state"] == "mounted"
    assert found["size"] == _STORE
    assert found["on_host"] < _STORE // 4
    assert found["is_direct"]
    assert _intact(home) == [_KEY]
    assert {name: (directory / name).read_bytes() for name in template_store.FILES} == before
    assert (directory / "memory").stat().st_mode & 0o777 == 0o400
    assert os.stat(directory / "manifest.json").st_mtime == 1, "the time of last use is kept"
    assert (home / "templates").stat().st_mode & 0o777 == 0o700
    assert _call("storage", "remove").stdout == f"{_KEY}\n"
    assert _status()["state"] == "none"
    assert sorted(os.listdir(home / "templates")) == [".lock"]
    assert sorted(os.listdir(home)) == [".storage.lock", "kernels", "templates"]


def test_refusals(store: Path) -> None:
    image = store / "storage.img"
    assert _refused("storage", "init") == f"rundctl: {image} is mounted already (rundctl storage status)"
    assert _refused("storage", "mount") == f"rundctl: {image} is mounted already (rundctl storage status)"
    subprocess.run(["umount", store / "templates"], check=True)
    assert "is there already, of 1024 MiB" in _refused("storage", "init", "--size", "2G")
    assert _status()["state"] == "unmounted"
    _call("storage", "mount")
    assert _status()["state"] == "mounted"


def test_no_space(home: Path) -> None:
    assert f"no space for a reflink store of 8192 MiB: {home} has" in _refused("storage", "init", "--size", "8G")
    full = fill(home)
    assert "no space for a reflink store of 512 MiB" in _refused("storage", "init")
    assert sorted(os.listdir(home)) == [".storage.lock", full.name, "kernels"]


def test_templates_that_do_not_fit_stay(home: Path) -> None:
    directory = _make_up(home)
    with (directory / "memory").open("r+b") as file:
        os.chmod(directory / "memory", 0o600)
        file.write(os.urandom(1 << 20) * 600)
    with (directory / "memory").open("rb") as file:
        digest = files.content_digest(file.fileno())
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"]["memory"] = {
        "digest": digest, "identity": manifests.file_identity(str(directory / "memory")),
    }  # fmt: skip
    (directory / "manifest.json").write_text(json.dumps(manifest))
    assert "no space left on device" in _refused_last("storage", "init", "--size", "512M")
    assert _status()["state"] == "none"
    assert _intact(home) == [_KEY]


def _refused_last(*arguments: str) -> str:
    """The error, after lines of progress."""
    return _call(*arguments, code=1).stderr.splitlines()[-1]


def test_a_file_system_with_reflinks_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with disk(tmp_path, "xfs", 2048) as point:
        monkeypatch.setenv("RUNDCTL_HOME", str(point))
        assert _refused("storage", "init").endswith("shares extents already: a reflink store would gain nothing")
        assert _status()["state"] == "native"
        assert not (point / "storage.img").exists()


def test_a_read_only_host(home: Path) -> None:
    home.joinpath("templates").mkdir()
    point = home.parent
    subprocess.run(["mount", "-o", "remount,ro", point], check=True)
    try:
        assert "read-only file system" in _refused("storage", "init")
    finally:
        subprocess.run(["mount", "-o", "remount,rw", point], check=True)


_KILLED = """
import os, signal, sys
events = int(sys.argv[1])
from rundctl.engine import settings
from rundctl.engine.template import reflink_store
import json, shutil, subprocess
home = settings.load().home
COUNTED = ("open", "fcntl.ioctl", "fcntl.flock", "os.link", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "subprocess.Popen", "os.chmod", "os.listdir")
def hook(event, arguments):
    global events
    if event in COUNTED:
        events -= 1
        if events < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
reflink_store.init(home, 512 << 20, lambda step: None)
"""


def test_killed_at_every_step(home: Path) -> None:
    """SIGKILL before one system call after the other: the templates are always to be had, and a repeated init mends the rest."""
    step, survived = 0, False
    while not survived:
        _make_up(home)
        killed = subprocess.run([sys.executable, "-c", _KILLED, str(step)], capture_output=True, text=True, check=False)
        survived = killed.returncode == 0
        assert survived or killed.returncode == -signal.SIGKILL, killed.stderr
        state = _status()["state"]
        assert state in (("mounted",) if survived else ("none", "unmounted", "mounted"))
        assert set(os.listdir(home)) <= {".storage.lock", "kernels", "storage.img", "templates"}
        if state != "mounted":
            _call("storage", "init", "--size", "512M")
        assert _intact(home) == [_KEY], step
        assert sorted(os.listdir(home / "templates")) == [_KEY] or sorted(os.listdir(home / "templates")) == [
            ".lock",
            _KEY,
        ]
        _call("storage", "remove")
        step += 7
    assert step > 70


def test_two_at_once(home: Path) -> None:
    _make_up(home)
    both = [
        subprocess.Popen(
            [RUNDCTL, "storage", "init", "--size", "1G"], stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL
        )
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=DEADLINE_S)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    assert sum("is mounted already" in error for error in errors) == 1
    assert _intact(home) == [_KEY]
    _call("storage", "remove")


def test_a_builder_that_waited_builds_in_the_store(home: Path) -> None:
    """Who waited for the lock below the store's mount point gets the one in it."""
    (home / "templates").mkdir()
    path = f"{home}/templates/.lock"
    waiter = "import sys; from rundctl.host import files\nwith files.Lock(sys.argv[1]): print(open('/proc/self/mountinfo').read())"
    with files.Lock(path):
        process = subprocess.Popen([sys.executable, "-c", waiter, path], stdout=subprocess.PIPE)
        image = f"{home}/storage.img"
        reflink_store._format(image, 512 << 20, print)
        with loop.Loop(image) as device:
            subprocess.run(["mount", device.path, home / "templates"], check=True)
        inside = os.stat(home / "templates").st_dev
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert os.stat(path).st_dev == inside
    _call("storage", "remove")


def test_another_mount_namespace_gets_the_same_device(store: Path) -> None:
    """There the store is not mounted: whoever needs it mounts it, and never makes a second device of one file, which would destroy it."""
    _make_up(store)
    inside = f"umount {store}/templates && {RUNDCTL} template list && grep -c {store}/templates /proc/self/mountinfo"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", inside],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert _KEY in done.stdout
    behind = [
        path for path in loop._devices() if loop._status(path)[0] == loop._identity((store / "storage.img").stat())
    ]
    assert behind == [_status()["device"]]


def test_containers_in_the_store(store: Path, cli: Cli, bundle: Callable[..., Path], tmp_path: Path) -> None:
    """Built in it, cloned from it, refused to be removed under it; after a reboot the first create mounts it and builds nothing."""
    where = bundle("/bin/sleep", "1000")
    _call("template", "build")
    built = _intact(store)
    cli.create("first", where)
    assert _status()["users"] > 0
    assert "storage.img is in use by" in _refused("storage", "remove")
    cli("start", "first")
    cli("delete", "--force", "first")
    subprocess.run(["umount", store / "templates"], check=True)  # as after a reboot
    assert _intact(store) == []
    cli.create("second", where)
    assert _intact(store) == built
    assert _status()["state"] == "mounted"
    assert "saving the guest" not in (tmp_path / "create-stderr").read_text()
    cli("delete", "--force", "second")


def test_a_damaged_store(store: Path, cli: Cli, bundle: Callable[..., Path], tmp_path: Path) -> None:
    """Create does not go without it: what it built below would be lost to the next mount."""
    where = bundle("/bin/true")
    subprocess.run(["umount", store / "templates"], check=True)
    with (store / "storage.img").open("r+b") as file:
        file.write(bytes(4096))
    line = cli("create", "--bundle", str(where), "c1", code=1).stderr.decode().splitlines()[-1]
    assert line.startswith(f"rundctl: mount {store}/storage.img: ")
    assert "rundctl storage remove" in line
    assert json.loads(cli("list", "-f", "json").stdout or b"[]") in ([], None)
    _call("storage", "remove")
    assert _status()["state"] == "none"


def test_a_full_and_a_read_only_store(store: Path, cli: Cli, bundle: Callable[..., Path]) -> None:
    where = bundle("/bin/true")
    _call("template", "build")
    templates = store / "templates"
    full = fill(templates)
    line = cli("create", "--bundle", str(where), "c1", code=1).stderr.decode()
    assert line.splitlines()[-1].endswith("no space left on device")
    assert "make the upper layer in" in line
    full.unlink()
    subprocess.run(["mount", "-o", "remount,ro", templates], check=True)
    line = cli("create", "--bundle", str(where), "c1", code=1).stderr.decode()
    assert line.splitlines()[-1].endswith("read-only file system")
    assert "make the upper layer in" in line
    subprocess.run(["mount", "-o", "remount,rw", templates], check=True)
    cli("run", "--bundle", str(where), "c1")
