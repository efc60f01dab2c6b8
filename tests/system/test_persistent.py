"""A persistent root file system: what a container writes is in the bundle's rootfs at once, and what the host writes is in the container."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rundctl.engine import settings
from rundctl.vmm import binary, virtiofsd

from .conftest import DEADLINE_S, Cli, JsonDict, digest, eventually
from .runtimes import VOLUME_TRANSPORTS

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.vm
ANNOTATION = "io.rundctl.rootfs"
SOURCE = Path(__file__).with_name("persistent_probe.c")
BIG_MIB = 40


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("probe") / "probe"
    subprocess.run(["gcc", "-static", "-O1", "-Wall", "-Wextra", "-Werror", SOURCE, "-o", program], check=True)
    return program


@pytest.fixture
def own(rootfs: Path, probe: Path, tmp_path: Path) -> Path:
    """A rootfs of this test alone."""
    copy = tmp_path / "own"
    shutil.copytree(rootfs, copy, symlinks=True)
    shutil.copy2(probe, copy / "bin/probe")
    return copy


@pytest.fixture(params=VOLUME_TRANSPORTS)
def on(request: pytest.FixtureRequest, own: Path, spec: JsonDict) -> str:
    """All of this test's containers are on it, persistent, by this transport."""
    spec["root"] = {"path": str(own), "readonly": False}
    spec["annotations"] = {ANNOTATION: "persistent", f"{ANNOTATION}.lower": request.param}
    return str(request.param)


def _served_in_rust() -> bool:
    path = virtiofsd.find("")
    return not subprocess.check_output([path, "--version"], text=True).startswith("virtiofsd version")


def _qemu_is_before(major: int) -> bool:
    said = subprocess.check_output([binary.find(binary.Choice(settings.load().home)), "--version"], text=True)
    return int(said.removeprefix("QEMU emulator version ").partition(".")[0]) < major


def _said(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    return done.stdout.decode().splitlines()


@pytest.mark.usefixtures("on")
def test_what_is_written_is_on_the_host_with_its_owner(sh, own: Path) -> None:
    def user(config: JsonDict) -> None:
        config["process"]["user"] = {"uid": 70001, "gid": 70002}

    def can_do_all(config: JsonDict) -> None:
        names = [f"CAP_{name}" for name in ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD")]
        config["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), names)

    script = """
        cd /root && echo one >file && echo two >>file && mv file renamed && echo gone >gone && rm gone
        mkdir -p directory/deep && rmdir directory/deep && echo x >owned && chown 1234:70000 owned && chmod 6751 owned
        ln renamed hard && ln -s ../../etc/passwd link && touch -d @1234567890 renamed
        mkdir setgid && chgrp 4321 setgid && chmod 2775 setgid && echo y >setgid/inherits
        echo long >short && echo . >short && sync
    """
    sh(f"set -e; {script}", change=can_do_all)
    sh("set -e; umask 027; echo mine >/tmp/mine; mkdir /tmp/directory", change=user)
    home = own / "root"
    assert (home / "renamed").read_text() == "one\ntwo\n"
    assert (home / "renamed").stat().st_mtime == 1234567890
    assert sorted(os.listdir(home)) == [
        "directory", "hard", "link", "owned", "renamed", "setgid", "short",
    ]  # fmt: skip
    assert os.listdir(home / "directory") == []
    owned = (home / "owned").stat()
    assert (owned.st_uid, owned.st_gid, stat.S_IMODE(owned.st_mode)) == (1234, 70000, 0o6751)
    assert (home / "hard").samefile(home / "renamed")
    assert os.readlink(home / "link") == "../../etc/passwd"
    assert (home / "setgid/inherits").stat().st_gid == 4321
    assert (home / "short").read_text() == ".\n"
    mine, directory = (own / "tmp/mine").stat(), (own / "tmp/directory").stat()
    assert (mine.st_uid, mine.st_gid, stat.S_IMODE(mine.st_mode)) == (70001, 70002, 0o640)
    assert (directory.st_uid, directory.st_gid, stat.S_IMODE(directory.st_mode)) == (70001, 70002, 0o750)


def test_mapped_files_and_fsync(sh, on: str, own: Path) -> None:
    """Not mapped shared where nothing is cached, on a kernel before 6.6: docs/rootfs.md."""
    (own / "mapped").write_bytes(b"a" * 8192)
    if on == "virtiofs" and _served_in_rust():
        assert b"mmap: No such device" in sh("probe mmap /mapped", code=1).stdout
        assert _said(sh("probe fsync /synced")) == ["ok"]
        return
    assert _said(sh("probe mmap /mapped && probe fsync /synced")) == ["ok", "ok"]
    written = (own / "mapped").read_bytes()
    assert (written[:9], written[4089:4103], len(written)) == (b"unmappeda", b"aacross pagesa", 8192)
    assert (own / "synced").read_text() == "synced"


@pytest.mark.usefixtures("on")
def test_a_file_without_a_name(sh, own: Path) -> None:
    """It is read, written and examined as ever."""
    assert _said(sh("probe unlinked /nameless", code=None)) == ["ok"]
    assert not (own / "nameless").exists()


def test_a_fifo(sh, on: str, own: Path) -> None:
    """None by 9p of QEMU 7.2, unlike runc: docs/rootfs.md."""
    if on == "9p" and _qemu_is_before(10):
        assert b"No such device or address" in sh("mkfifo /fifo", code=1).stderr
        assert not (own / "fifo").exists()
    else:
        assert sh("mkfifo /fifo; (echo through >/fifo &); cat /fifo").stdout == b"through\n"
        assert (own / "fifo").is_fifo()


@pytest.mark.usefixtures("on")
def test_a_big_file(sh, own: Path) -> None:
    script = f"dd if=/dev/urandom of=/big bs=1M count={BIG_MIB} 2>/dev/null && sha256sum </big"
    said = sh(script).stdout.split()[0].decode()
    assert (own / "big").stat().st_size == BIG_MIB << 20
    assert digest((own / "big").read_bytes()) == said


@pytest.mark.usefixtures("on")
def test_the_hosts_changes_are_seen_while_it_runs(cli: Cli, bundle: Callable[..., Path], own: Path) -> None:
    """Contents, new names, names that are gone, modes: each is asked of the host when it is wanted. So are the contents of a file that is open."""
    (own / "data").write_text("before")
    (own / "vanishes").touch()
    (own / "watch").mkdir()
    script = "ls /watch /vanishes; echo ready; read x; cat /data; ls /watch; stat -c %a /data; ls /vanishes 2>&1; echo .; exec probe follow /data"
    run = cli.popen(
        "run", "--bundle", str(bundle("/bin/sh", "-c", script)), "p", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert run.stdin is not None
    assert run.stdout is not None
    while run.stdout.readline() != b"ready\n":
        assert run.poll() is None
    (own / "data").write_text("after, longer")
    (own / "data").chmod(0o604)
    (own / "vanishes").unlink()
    (own / "watch/new").touch()
    run.stdin.write(b"\n")
    run.stdin.flush()
    lines = [run.stdout.readline().decode() for _ in range(4)]
    assert "".join(lines) == "after, longernew\n604\nls: /vanishes: No such file or directory\n.\n"
    assert run.stdout.readline() == b"after, longer\n"
    (own / "data").write_text("AFTER, LONGER")  # as long as before: sizes tell nothing
    run.stdin.write(b"\n")
    run.stdin.close()
    assert run.stdout.readline() == b"AFTER, LONGER\n"
    run.stdout.close()
    assert run.wait(DEADLINE_S) == 0
    cli("delete", "p", code=None)


@pytest.mark.usefixtures("on")
def test_a_second_container_finds_what_the_first_wrote(sh, own: Path) -> None:
    (own / "etc/machine-id").write_text("")
    sh("echo kept >/kept")
    assert _said(sh("cat /kept; echo more >>/kept", "--template=off")) == ["kept"]
    assert (own / "kept").read_text() == "kept\nmore\n"
    assert (own / "etc/machine-id").read_text() == ""  # as with runc: it is the image's


@pytest.mark.usefixtures("on")
def test_two_containers_on_one_rootfs(sh, cli: Cli, bundle: Callable[..., Path], own: Path) -> None:
    script = "echo a >/first; while ! grep -q b /second 2>/dev/null; do sleep 0.1; done; cat /second >/seen; sleep 1000"
    cli.create("one", bundle("/bin/sh", "-c", script))
    cli("start", "one")
    eventually((own / "first").exists, "the first has written")
    sh("cat /first; echo b >/second")
    eventually(lambda: (own / "seen").exists() and (own / "seen").read_text() == "b\n", "the first has seen it")
    cli("delete", "--force", "one")


@pytest.mark.usefixtures("on")
def test_appends_of_two_containers_are_all_there(cli: Cli, bundle: Callable[..., Path], own: Path) -> None:
    (own / "log").touch()
    script = "i=0; while [ $i -lt 50 ]; do echo $0 $i >>/log; i=$((i+1)); done"
    runs = [cli.popen("run", "--bundle", str(bundle("/bin/sh", "-c", script, name)), name) for name in ("a", "b")]
    assert [run.wait(DEADLINE_S) for run in runs] == [0, 0]
    lines = (own / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{name} {number}" for name in "ab" for number in range(50))


@pytest.mark.usefixtures("on")
def test_a_read_only_root(sh, own: Path) -> None:
    def read_only(config: JsonDict) -> None:
        config["root"]["readonly"] = True

    (own / "file").write_text("as it was")
    done = sh("cat /file; echo x >/file; echo x >/new; rm /file; chmod 777 /file", change=read_only, code=None)
    assert done.stdout == b"as it was"
    assert done.stderr.count(b"Read-only file system") == 4
    assert (own / "file").read_text() == "as it was"
    assert not (own / "new").exists()


def test_by_the_setting(sh, spec: JsonDict, own: Path, configure: Callable[..., None]) -> None:
    spec["root"]["path"] = str(own)
    spec["annotations"] = None
    configure(rootfs="persistent")
    sh("echo kept >/kept")
    assert (own / "kept").read_text() == "kept\n"
    spec["annotations"] = {ANNOTATION: "volatile"}
    sh("echo lost >/lost")
    assert not (own / "lost").exists()


def test_without_a_word_where_an_engine_has_its_roots(sh, spec: JsonDict, own: Path) -> None:
    """Outside of the bundle."""
    spec["root"]["path"] = str(own)
    spec["annotations"] = None
    sh("echo kept >/kept")
    assert (own / "kept").read_text() == "kept\n"
    spec["root"]["readonly"] = True
    sh("echo lost >/lost", code=1)


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize(
    ("annotation", "value", "why"),
    [
        ("lower", "erofs", "a rootfs by erofs is read-only"),
        ("lower", "blk", "a rootfs by blk dies with the VM"),
        ("immutable", "1", "says that the rootfs does not change"),
    ],
)
def test_what_does_not_combine_is_refused(
    cli: Cli, bundle: Callable[..., Path], annotation: str, value: str, why: str
) -> None:
    def change(config: JsonDict) -> None:
        config["annotations"][f"{ANNOTATION}.{annotation}"] = value

    done = cli("create", "--bundle", str(bundle("/bin/true", change=change)), "refused", code=1)
    assert done.stderr.decode().count("\n") == 1
    assert why in done.stderr.decode()


@pytest.mark.usefixtures("on")
def test_links_lead_nowhere_out_of_the_rootfs(sh, own: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (own / "out").symlink_to(tmp_path / "secret")
    (own / "up").symlink_to("../" * 20 + str(tmp_path / "secret")[1:])
    done = sh(f"cat /out /up; ln -s {tmp_path} /dir; echo x >/dir/made", code=None)
    assert done.stdout == b""
    assert not (tmp_path / "made").exists()
    assert (tmp_path / "secret").read_text() == "secret"
