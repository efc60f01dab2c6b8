"""virtio-fs alone: the daemon beside QEMU, what its end means, where it cannot be had. What it shares with other transports is in the suites of those."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from rundctl.engine import settings
from rundctl.engine.rootfs import shares
from rundctl.engine.template import store
from rundctl.host import memo, patience
from rundctl.oci import options

from . import host_mounts
from .conftest import DEADLINE_S, Cli, JsonDict, eventually
from .runtimes import Change, bind

pytestmark = pytest.mark.vm
SLEEP = ("/bin/sleep", "1000")
SECONDS = patience.seconds(10.0)  # a container whose daemon was killed is gone by then, however busy the host
REPLACED = 60  # how often the host writes another program to the same file
NOTHING = 'asm volatile("nop; xor %%eax, %%eax" ::: "eax"); '
BUSY = "while true; do cat /bin/busybox /v/* >/dev/null; done"


def _by_virtiofs(*mounts: JsonDict) -> Change:
    def change(config: JsonDict) -> None:
        config["annotations"] = {options.LOWER: "virtiofs"}
        config["mounts"] += mounts

    return change


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    directory = tmp_path / "volume"
    directory.mkdir()
    (directory / "file").write_text("of the host\n")
    return directory


def test_a_program_that_is_replaced_runs_as_what_it_is_now(cli: Cli, bundle: Callable[..., Path], volume: Path) -> None:
    """An emulator keeps its translation of code by the memory that holds it, and does not see that a virtiofsd writes other code there."""
    programs = []
    for name in ("one", "two"):
        program = volume.parent / name
        source = f'int main(void) {{ {NOTHING * (1 + 40 * len(programs))} puts("{name}"); return 0; }}'
        argv = ["gcc", "-static", "-O1", "-include", "stdio.h", "-x", "c", "-", "-o", program]
        subprocess.run(argv, input=source.encode(), check=True)
        programs.append(program.read_bytes())
    (volume / "program").touch(mode=0o755)
    script = "while read x; do /v/program || echo code $?; done"
    config = bundle("/bin/sh", "-c", script, change=_by_virtiofs(bind(volume, "/v")))
    run = cli.popen("run", "--bundle", str(config), "p", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert run.stdin is not None
    assert run.stdout is not None
    said = []
    for turn in range(REPLACED):
        (volume / "program").write_bytes(programs[turn % 2])
        run.stdin.write(b"go\n")
        run.stdin.flush()
        said.append(run.stdout.readline().strip())
    run.communicate(timeout=DEADLINE_S)
    assert said == [b"one", b"two"] * (REPLACED // 2)


def _daemons(shim: int) -> list[psutil.Process]:
    """Children of the shim, in the order in which it started them."""
    return [child for child in psutil.Process(shim).children() if "virtiofsd" in " ".join(child.cmdline()[:3])]


def _record(cli: Cli, name: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in (cli.root / name / "exit").read_text().splitlines())


@pytest.mark.parametrize("which", ["of the rootfs", "of the volumes"])
def test_a_killed_daemon_ends_the_container(
    cli: Cli, bundle: Callable[..., Path], volume: Path, tmp_path: Path, which: str
) -> None:
    """Also while the guest reads through it, who would otherwise wait for ever."""
    before = host_mounts.found(tmp_path)
    cli.create("v", bundle("/bin/sh", "-c", BUSY, change=_by_virtiofs(bind(volume, "/v", "bind"))))
    cli("start", "v")
    shim = cli.state("v")["pid"]
    family = [shim, *(child.pid for child in psutil.Process(shim).children(recursive=True))]
    began = time.monotonic()
    _daemons(shim)[which == "of the volumes"].kill()
    cli.wait_status("v", "stopped")
    assert time.monotonic() - began < SECONDS
    record = _record(cli, "v")
    assert record["reason"] == "virtiofsd"
    assert record["detail"] == "virtiofsd was killed by signal 9"
    assert record["code"] == "255"
    eventually(lambda: not any(_lives(pid) for pid in family), "all of it is gone")
    cli("delete", "v")
    assert host_mounts.found(tmp_path) == before


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_killed_worker_ends_the_container(cli: Cli, bundle: Callable[..., Path]) -> None:
    """The daemon's first process waits for the one that serves, which is what an OOM killer would choose."""
    cli.create("v", bundle(*SLEEP, change=_by_virtiofs()))
    cli("start", "v")
    (daemon,) = _daemons(cli.state("v")["pid"])
    (worker,) = daemon.children()
    worker.kill()
    cli.wait_status("v", "stopped")
    record = _record(cli, "v")
    assert record["reason"] == "virtiofsd"
    assert record["detail"].startswith("virtiofsd exited with status ")
    cli("delete", "v")


def test_run_ends_with_255_and_says_why(cli: Cli, bundle: Callable[..., Path]) -> None:
    where = str(bundle(*SLEEP, change=_by_virtiofs()))
    with cli.popen("run", "--bundle", where, "v", stderr=subprocess.PIPE) as run:
        eventually(lambda: b"running" in cli("state", "v", code=None).stdout, "running")
        _daemons(cli.state("v")["pid"])[0].kill()
        assert run.wait(SECONDS) == 255
        assert run.stderr is not None
        assert b"virtiofsd was killed by signal 9" in run.stderr.read()


@pytest.mark.parametrize("victim", ["shim", "qemu"])
def test_kill_9_takes_the_daemons_along(cli: Cli, bundle: Callable[..., Path], volume: Path, victim: str) -> None:
    cli.create("v", bundle(*SLEEP, change=_by_virtiofs(bind(volume, "/v", "bind"))))
    cli("start", "v")
    shim = cli.state("v")["pid"]
    children = psutil.Process(shim).children(recursive=True)
    qemu = next(child for child in children if "qemu" in child.name())
    assert len(children) >= 3
    os.kill(shim if victim == "shim" else qemu.pid, signal.SIGKILL)
    cli.wait_status("v", "stopped")
    eventually(lambda: not any(_lives(child.pid) for child in children), "all of it is gone")
    if victim == "qemu":
        assert (_record(cli, "v")["reason"], _record(cli, "v")["code"]) == ("qemu", "137")
    cli("delete", "v")


def test_daemons_are_in_the_containers_cgroup_and_see_nothing_else(
    cli: Cli, bundle: Callable[..., Path], volume: Path
) -> None:
    """The process that serves has the shared directory as its root, and no network."""
    cli.create("v", bundle(*SLEEP, change=_by_virtiofs(bind(volume, "/v", "bind", "ro"))))
    shim = cli.state("v")["pid"]
    cgroup = Path(f"/proc/{shim}/cgroup").read_text()
    rootfs, volumes = (daemon.children()[0].pid for daemon in _daemons(shim))
    for pid in (rootfs, volumes):
        assert Path(f"/proc/{pid}/cgroup").read_text() == cgroup
        assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
        assert "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text()
        assert len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines()) <= 3
    root = Path(f"/proc/{rootfs}/root")
    assert sorted(os.listdir(root)) == sorted(os.listdir(cli.state("v")["rootfs"]))
    served = Path(f"/proc/{volumes}/root/0")
    for read_only in (root / "new", served / "new", served / volume.name / "new"):
        with pytest.raises(OSError, match="Read-only file system"):
            read_only.write_text("x")
    cli("delete", "--force", "v")


def test_a_cold_boot(cli: Cli, bundle: Callable[..., Path], volume: Path) -> None:
    script = "cat /v/file; echo by the guest >/v/new; echo x >/etc/new && cat /etc/new"
    where = bundle("/bin/sh", "-c", script, change=_by_virtiofs(bind(volume, "/v", "bind")))
    assert cli("run", "--template=off", "--bundle", str(where), "v").stdout == b"of the host\nx\n"
    assert (volume / "new").read_text() == "by the guest\n"


def test_many_at_once_and_the_template_stays_as_it_was(cli: Cli, bundle: Callable[..., Path], volume: Path) -> None:
    """Each has memory of its own: nothing one writes is another's, or the template's."""
    where = bundle("/bin/sh", "-c", "echo $(cat /v/file)", change=_by_virtiofs(bind(volume, "/v", "bind", "ro")))
    cli("run", "--bundle", str(where), "first")
    home = settings.load().home
    before = {each.key: each.intact for each in store.entries(home)}
    runs = [cli.popen("run", "--bundle", str(where), f"v{n}", stdout=subprocess.PIPE) for n in range(4)]
    assert [run.communicate(timeout=DEADLINE_S)[0] for run in runs] == [b"of the host\n"] * 4
    after = {each.key: each.intact for each in store.entries(home)}
    assert {key: after.get(key) for key in before} == before


def test_a_memory_limit_has_room_for_copy_and_daemons(cli: Cli, bundle: Callable[..., Path], volume: Path) -> None:
    """The container can use up its memory; the VM's cgroup on the host, where all of it is charged, does not end it before."""

    def change(config: JsonDict) -> None:
        _by_virtiofs(bind(volume, "/v", "bind"))(config)
        config["linux"].setdefault("resources", {})["memory"] = {"limit": 64 << 20}

    script = "dd if=/dev/urandom of=/dev/shm/x bs=1M count=50 2>/dev/null && cat /v/file /bin/busybox >/dev/null && echo used"
    assert cli("run", "--bundle", str(bundle("/bin/sh", "-c", script, change=change)), "v").stdout == b"used\n"


def test_by_the_setting(sh, configure: Callable[..., None], cli: Cli) -> None:
    configure(lower="virtiofs")
    assert sh("mount | grep ' / '").stdout.startswith(b"overlay on / ")
    assert b"virtiofs" in sh("cat /proc/self/mountinfo; echo; cat /proc/filesystems | grep virtiofs").stdout


def test_acls_hold_where_all_volumes_are_of_one_file_system(
    cli: Cli, bundle: Callable[..., Path], volume: Path
) -> None:
    acl = bytes.fromhex("0200000001000600ffffffff02000400e803000004000000ffffffff10000400ffffffff20000000ffffffff")
    os.setxattr(volume / "file", "system.posix_acl_access", acl)

    def change(config: JsonDict) -> None:
        _by_virtiofs(bind(volume, "/v", "bind"))(config)
        config["process"]["user"] = {"uid": 1000, "gid": 1000}

    where = bundle("/bin/sh", "-c", "cat /v/file; echo x >>/v/file", change=change)
    done = cli("run", "--bundle", str(where), "v", code=1)
    assert done.stdout == b"of the host\n"
    assert b"Permission denied" in done.stderr


def test_files_of_two_file_systems_are_not_taken_for_one(cli: Cli, bundle: Callable[..., Path], tmp_path: Path) -> None:
    """Root directories of two tmpfs have one inode number: cp and diff would call them the same."""
    outer, inner = tmp_path / "outer", tmp_path / "outer/inner"
    outer.mkdir()
    with _tmpfs(outer):
        inner.mkdir()
        with _tmpfs(inner):
            assert outer.stat().st_ino == inner.stat().st_ino
            mounts = bind(outer, "/outer", "rbind"), bind(inner, "/inner", "bind")
            script = "stat -c '%d %i' /outer /inner; ls /outer/inner; stat -c '%d %i' /outer/inner"
            where = bundle("/bin/sh", "-c", script, change=_by_virtiofs(*mounts))
            seen = cli("run", "--bundle", str(where), "v").stdout.splitlines()
    assert len(set(seen)) == 3, seen


@contextmanager
def _tmpfs(target: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "volume", target], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)


def test_files_of_the_hosts_procfs(cli: Cli, bundle: Callable[..., Path]) -> None:
    """They say that they are empty, and what is cached is read as far as its size (docs/rootfs.md)."""
    where = bundle("/bin/cat", "/p/version", change=_by_virtiofs(bind(Path("/proc"), "/p", "bind", "ro")))
    read = cli("run", "--bundle", str(where), "v").stdout
    host = settings.load()
    is_rust = shares.find_daemon(host, memo.of_home(host.home)).is_rust
    assert read == (Path("/proc/version").read_bytes() if is_rust else b"")


def _refused(cli: Cli, where: Path) -> str:
    lines = cli("create", "--bundle", str(where), "v", code=1).stderr.decode().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_without_a_daemon(
    cli: Cli, bundle: Callable[..., Path], configure: Callable[..., None], tmp_path: Path
) -> None:
    configure(virtiofsd=f"{tmp_path}/none")
    line = _refused(cli, bundle("/bin/true", change=_by_virtiofs()))
    assert f"virtio-fs needs virtiofsd, and there is none: {tmp_path}/none" in line
    assert "apt-get install virtiofsd" in line


def test_what_is_no_daemon(cli: Cli, bundle: Callable[..., Path], configure: Callable[..., None]) -> None:
    configure(virtiofsd="/bin/echo")
    assert "/bin/echo: not a virtiofsd" in _refused(cli, bundle("/bin/true", change=_by_virtiofs()))


@pytest.mark.parametrize("flags", [(), ("--template=off",)])
def test_a_daemon_that_fails(
    cli: Cli, bundle: Callable[..., Path], configure: Callable[..., None], tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """Its own words are told."""
    program = tmp_path / "virtiofsd"
    program.write_text('#!/bin/sh\n[ "$1" = --version ] && echo virtiofsd 1.0 || { echo out of order >&2; exit 4; }\n')
    program.chmod(0o755)
    configure(virtiofsd=str(program))
    where = bundle("/bin/true", change=_by_virtiofs())
    lines = cli("create", *flags, "--bundle", str(where), "v", code=1).stderr.decode().splitlines()
    assert len(lines) == 1, lines
    assert "virtiofsd exited with status 4" in lines[0]


def test_a_kernel_without_it(
    cli: Cli, bundle: Callable[..., Path], configure: Callable[..., None], stock_kernel: str
) -> None:
    configure(kernel=stock_kernel)
    line = _refused(cli, bundle("/bin/true", change=_by_virtiofs()))
    assert "the guest's kernel has no virtiofs" in line
    assert "rundctl kernel build" in line


def test_a_root_directory_with_a_comma(bundle: Callable[..., Path], tmp_path: Path, template: str) -> None:
    del template
    cli = Cli(tmp_path / "a,b\\c")
    cli.root.mkdir()
    assert cli("run", "--bundle", str(bundle("/bin/cat", "/etc/group", change=_by_virtiofs())), "v").stdout
    assert json.loads(cli("list", "-f", "json").stdout or b"null") in (None, [])
