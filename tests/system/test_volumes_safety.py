"""What a bind mount must not do: lead out of its source, pass for what it is not, or stay on the host when everything is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from rundctl.oci import options
from rundctl.oci.linux import CAPABILITIES

from . import host_mounts
from .conftest import Cli, JsonDict, eventually
from .runtimes import VOLUME_TRANSPORTS, Change, bind
from .steps import Stepper, some

pytestmark = pytest.mark.vm


@pytest.fixture(params=VOLUME_TRANSPORTS)
def lower(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _with(lower: str, *mounts: JsonDict, hostile: bool = False) -> Change:
    def change(config: JsonDict) -> None:
        config["annotations"] = {options.LOWER: lower}
        config["mounts"] += mounts
        if hostile:
            config["process"]["noNewPrivileges"] = False
            config["process"]["capabilities"] = dict.fromkeys(
                ("bounding", "effective", "permitted"), sorted(CAPABILITIES)
            )
            config["linux"]["maskedPaths"] = config["linux"]["readonlyPaths"] = []
            for mount in config["mounts"]:
                if mount["destination"] == "/sys":
                    mount["options"].remove("ro")

    return change


@pytest.mark.parametrize("names", [("shared",), ("rshared",), ("private", "rshared")])
def test_shared_propagation_holds_in_the_guest(
    cli: Cli, bundle, tmp_path: Path, lower: str, names: tuple[str, ...]
) -> None:
    """What the guest mounts cannot appear on the host, which is another kernel."""
    where = bundle("/bin/cat", "/proc/self/mountinfo", change=_with(lower, bind(tmp_path, "/v", "bind", *names)))
    lines = cli("run", "--bundle", str(where), "v").stdout.decode().splitlines()
    (fields,) = (line.partition(" - ")[0].split() for line in lines if line.split()[4] == "/v")
    assert [field for field in fields[6:] if field.startswith("shared:")], fields


def test_a_relative_source_counts_from_the_bundle(cli: Cli, bundle, lower: str) -> None:
    where = bundle("/bin/cat", "/v/file", change=_with(lower, bind(Path("data"), "/v", "bind")))
    (where / "data").mkdir()
    (where / "data/file").write_text("beside config.json\n")
    assert cli("run", "--bundle", str(where), "v").stdout == b"beside config.json\n"


def test_a_directory_on_a_file_is_refused(cli: Cli, bundle, tmp_path: Path, lower: str) -> None:
    where = bundle("/bin/true", change=_with(lower, bind(tmp_path, "/etc/passwd", "bind")))
    lines = cli("create", "--bundle", str(where), "v", code=1).stderr.decode().splitlines()
    assert len(lines) == 1
    assert "/etc/passwd" in lines[0]
    assert "not a directory" in lines[0].lower()


@pytest.mark.parametrize("lower", ["9p"], indirect=True)
def test_a_hostile_guest_reaches_what_it_was_given(cli: Cli, bundle, tmp_path: Path, lower: str) -> None:
    """Root with all capabilities cannot mount the device that the agent has mounted: Linux lets nobody else have it, nor take it away.

    Whoever owns the guest's kernel can. So what QEMU would show is looked at on the host: the sources, read-only where they should be, and no
    more. That `..` and names with a slash do not lead out is QEMU's promise (v9fs_walk); no client here can send them.
    """
    for name in ("given", "read-only"):
        (tmp_path / name).mkdir()
    script = "mkdir /m; mount -t 9p -o trans=virtio,version=9p2000.L volumes /m; ls /m | wc -l; echo done; sleep 1000"
    mounts = bind(tmp_path / "given", "/given", "bind"), bind(tmp_path / "read-only", "/read-only", "bind", "ro")
    with (tmp_path / "out").open("wb") as out:
        cli.create("v", bundle("/bin/sh", "-c", script, change=_with(lower, *mounts, hostile=True)), stdout=out)
    cli("start", "v")
    eventually(lambda: (tmp_path / "out").read_bytes().endswith(b"done\n"), "the guest has tried")
    assert (tmp_path / "out").read_text() == "0\ndone\n"
    (exported,) = _exported(cli.state("v")["pid"], lower)
    assert sorted(path.name for path in exported.iterdir()) == ["0", "1"]
    assert [os.listdir(exported / number) for number in "01"] == [["given"], ["read-only"]]
    assert (exported / "0/given").samefile(tmp_path / "given")
    assert (exported / "1/read-only").samefile(tmp_path / "read-only")
    (exported / "0/given/new").write_text("allowed\n")
    for refused in ("1/read-only/new", "1/new", "new"):
        with pytest.raises(OSError, match="Read-only file system"):
            (exported / refused).write_text("refused\n")
    cli("delete", "--force", "v")


def _exported(shim: int, lower: str) -> list[Path]:
    """What those who serve volumes have and could give away, in their own mount namespaces: of virtiofsd's processes it is the root."""
    if lower == "9p":
        qemu = Path("/proc", str(_qemu_of(shim)))
        found = re.search(r"id=volumes,[^\0]*path=/proc/self/fd/(\d+)", (qemu / "cmdline").read_text())
        assert found, "the export of volumes on QEMU's command line"
        return [qemu / "fd" / found[1]]
    daemons = [child for child in psutil.Process(shim).children(recursive=True) if "virtiofsd" in child.name()]
    roots = [Path("/proc", str(daemon.pid), "root") for daemon in daemons]
    return [root for root in roots if not (root / "bin").exists()]  # the others serve the rootfs


def test_what_serves_volumes_has_no_more_than_was_bound(cli: Cli, bundle, tmp_path: Path, lower: str) -> None:
    """Whatever a guest asks for: neither a single file's neighbours, nor mounts inside that `bind` leaves out, and nothing read-only can be written to."""
    sources = [tmp_path / name for name in ("plain", "tree", "tree-ro")]
    for source in sources:
        (source / "inside").mkdir(parents=True)
    (tmp_path / "single").write_text("one\n")
    (tmp_path / "secret").write_text("the host's\n")
    mounts = [
        bind(source, f"/{source.name}", *names)
        for source, names in zip(sources, (["bind"], ["rbind"], ["rbind", "ro"]), strict=True)
    ]
    mounts += [bind(tmp_path / "single", "/single", "bind"), bind(tmp_path / "single", "/single-ro", "bind", "ro")]
    with ExitStack() as stack:
        for source in sources:
            subprocess.run(["mount", "-t", "tmpfs", "volume", source / "inside"], check=True)
            stack.callback(subprocess.run, ["umount", source / "inside"], check=True)
            (source / "inside/mounted").touch()
        stack.callback(cli, "delete", "--force", "v")
        cli.create("v", bundle("/bin/true", change=_with(lower, *mounts)))
        exported = _exported(cli.state("v")["pid"], lower)
        assert exported
        for root in exported:
            assert sorted(os.listdir(root)) == ["0", "1", "2", "3", "4"]
            assert [os.listdir(root / name) for name in "01234"] == [
                ["plain"],
                ["tree"],
                ["tree-ro"],
                ["single"],
                ["single"],
            ]
            plain, tree, tree_ro, single, single_ro = (next((root / name).iterdir()) for name in "01234")
            assert [os.listdir(path / "inside") for path in (plain, tree, tree_ro)] == [[], ["mounted"], ["mounted"]]
            assert single.is_file()
            assert single.samefile(single_ro)
            writable = plain, plain / "inside", tree, tree / "inside", single
            assert all(os.access(path, os.W_OK) for path in writable)
            assert not any(os.access(path, os.W_OK) for path in (tree_ro, tree_ro / "inside", single_ro))


def _qemu_of(pid: int) -> int:
    return next(child.pid for child in psutil.Process(pid).children() if "qemu" in child.name())


def _nothing_more_than(before: list[str], directory: Path) -> None:
    eventually(lambda: set(host_mounts.found(directory)) <= set(before), "no mount is left")


@pytest.mark.parametrize("victim", ["creator", "shim", "qemu", "all"])
def test_kill_9_leaves_no_mount(cli: Cli, bundle, tmp_path: Path, lower: str, victim: str) -> None:
    source = tmp_path / "source"
    (source / "inside").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "volume", source / "inside"], check=True)
    try:
        before = host_mounts.found(tmp_path)
        where = bundle("/bin/sleep", "1000", change=_with(lower, bind(source, "/v", "rbind")))
        if victim == "creator":
            _kill_creators(cli, where, tmp_path)
        else:
            cli.create("v", where)
            cli("start", "v")
            shim = cli.state("v")["pid"]
            qemu = _qemu_of(shim)
            for pid in {"shim": [shim], "qemu": [qemu], "all": [qemu, shim]}[victim]:
                os.kill(pid, signal.SIGKILL)
            cli.wait_status("v", "stopped")
        _nothing_more_than(before, tmp_path)
        cli("delete", "--force", "v")
        _nothing_more_than(before, tmp_path)
    finally:
        subprocess.run(["umount", source / "inside"], check=True)  # not busy: nothing of ours holds it


def _kill_creators(cli: Cli, where: Path, directory: Path) -> None:
    """At steps all along a create."""
    stepper, words = Stepper(cli, directory), ("create", "--bundle", str(where), "v")
    assert stepper(0, signal.SIGKILL, *words) == 0
    for step in some(stepper.told(), 6):
        cli("delete", "--force", "v")
        assert stepper(step, signal.SIGKILL, *words) == -signal.SIGKILL, step
    eventually(
        lambda: cli.status("v") in ("stopped", "created") if cli("list", "-q").stdout else True, "it has settled"
    )


@contextmanager
def _tmpfs(target: Path, *options: str) -> Iterator[None]:
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", *options, "volume", target], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)


@pytest.mark.parametrize("lower", ["9p"], indirect=True)
def test_the_size_of_shm_is_that_of_a_tmpfs_of_any_name(cli: Cli, bundle, tmp_path: Path, lower: str) -> None:
    def change(config: JsonDict) -> None:
        config["mounts"] = [mount for mount in config["mounts"] if mount["destination"] != "/dev/shm"]
        _with(lower, bind(tmp_path / "a b", "/dev/shm", "bind"))(config)

    with _tmpfs(tmp_path / "a b", "-o", "size=3m"):
        script = "grep ' /dev/shm ' /proc/mounts"
        done = cli("run", "--bundle", str(bundle("/bin/sh", "-c", script, change=change)), "v")
    assert done.stdout.startswith(b"shm /dev/shm tmpfs "), done.stdout
    assert b"size=3072k" in done.stdout


@pytest.mark.parametrize("what", ["source", "rootfs"])
def test_of_an_unbindable_mount_is_told(cli: Cli, bundle, tmp_path: Path, what: str) -> None:
    place = tmp_path / "unbindable"

    def change(config: JsonDict) -> None:
        if what == "rootfs":
            config["root"]["path"] = str(place)
        else:
            _with("9p", bind(place, "/v", "bind"))(config)

    with _tmpfs(place):
        subprocess.run(["mount", "--make-unbindable", place], check=True)
        where = bundle("/bin/true", change=change)
        lines = cli("create", "--bundle", str(where), "v", code=1).stderr.decode().splitlines()
    assert len(lines) == 1, lines
    assert f"{place}: is on the unbindable mount {place}" in lines[0]
    assert f"mount --make-private {place}" in lines[0]
