"""A procfs among what a guest sees is read by who serves it, which is root: so it shows no processes, and its servers may do little."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from rundctl.engine import settings
from rundctl.engine.rootfs import shares
from rundctl.host import memo
from rundctl.oci import options

from .conftest import Cli, JsonDict, eventually
from .runtimes import VOLUME_TRANSPORTS, Change, bind

pytestmark = pytest.mark.vm
_NUMBERS = {"chown": 0, "dac_override": 1, "dac_read_search": 2, "fowner": 3, "fsetid": 4, "mknod": 27, "setfcap": 31}
SEEN = "ls -d {0}/[0-9]* {0}/self/* {0}/thread-self/* 2>/dev/null | wc -l; cat {0}/{1}/environ {0}/1/environ {0}/self/maps {0}/{1}/mem"


@pytest.fixture(params=VOLUME_TRANSPORTS)
def lower(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def _procfs(target: Path) -> Iterator[None]:
    target.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "proc", "proc", target], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)


def _with(lower: str, *mounts: JsonDict, **annotations: str) -> Change:
    def change(config: JsonDict) -> None:
        config["annotations"] = {options.LOWER: lower, **annotations}
        config["mounts"] += mounts

    return change


def _reads_files(lower: str) -> bool:
    """virtiofsd in C: files that say they are empty are read as empty (docs/rootfs.md)."""
    host = settings.load()
    return lower == "9p" or shares.find_daemon(host, memo.of_home(host.home)).is_rust


def test_no_process_is_seen_in_any(cli: Cli, bundle, tmp_path: Path, lower: str) -> None:
    """Bound alone, to read and to write, below the host's root, and inside of a directory with a space in its name."""
    with _procfs(tmp_path / "a b/proc"):
        mounts = (
            bind(Path("/proc"), "/ro", "bind", "ro"),
            bind(Path("/proc"), "/rw", "bind", "rw"),
            bind(Path("/"), "/host", "rbind", "ro", "rslave"),
            bind(tmp_path / "a b", "/nested", "rbind"),
        )
        places = ("/ro", "/rw", "/host/proc", "/nested/proc")
        script = "; ".join(SEEN.format(place, os.getpid()) for place in places)
        script += (
            "; for p in " + " ".join(places) + "; do ls $p/meminfo $p/sys/kernel/ostype; cat $p/stat | head -1; done"
        )
        done = cli("run", "--bundle", str(bundle("/bin/sh", "-c", script, change=_with(lower, *mounts))), "v")
    lines = done.stdout.decode().splitlines()
    assert lines[:4] == ["0"] * 4, lines[:9]
    assert b"\0" not in done.stdout
    assert done.stderr.count(b"No such file or directory") == 16
    assert [line for line in lines if line.endswith(("meminfo", "ostype"))] == [
        f"{place}/{name}" for place in places for name in ("meminfo", "sys/kernel/ostype")
    ]
    assert sum(line.startswith("cpu ") for line in lines) == (4 if _reads_files(lower) else 0)


@contextmanager
def _mounts(*commands: str) -> Iterator[None]:
    """Of mount(8); unmounted in reverse, each from where it was mounted to."""
    with ExitStack() as undo:
        for command in commands:
            subprocess.run(["mount", *command.split()], check=True)
            if "remount" not in command:
                undo.callback(subprocess.run, ["umount", "--lazy", command.split()[-1]], check=True)
        yield


def test_nothing_is_shown_or_writable_that_the_host_hides(cli: Cli, bundle, tmp_path: Path, lower: str) -> None:
    """By what is mounted inside of a procfs, as a runtime does it for its containers; by ``subset``; or because it is but a process's directory."""
    source = tmp_path / "source"
    for name in ("masked", "subset", "process", "ended"):
        (source / name).mkdir(parents=True)
    with subprocess.Popen(["sleep", "1000"]) as ended, _mounts(
        f"-t proc proc {source}/masked",
        f"--bind {source}/masked/sys {source}/masked/sys",
        f"-o remount,bind,ro {source}/masked/sys",
        f"--bind /dev/null {source}/masked/kallsyms",
        f"-t proc -o subset=pid proc {source}/subset",
        f"--bind /proc/{os.getpid()}/task {source}/process",
        f"--bind /proc/{ended.pid} {source}/ended",
    ):  # fmt: skip
        ended.kill()
        ended.wait()
        script = (
            "cd /v/masked; ls sys/kernel/ostype; cat kallsyms 2>/dev/null | wc -c; echo x >sys/kernel/domainname; "
            "cd ..; ls -A subset process ended; echo x >subset/sys/kernel/domainname; echo x >process/sys/kernel/domainname"
        )
        where = bundle("/bin/sh", "-c", script, change=_with(lower, bind(source, "/v", "rbind", "rw")))
        done = cli("run", "--bundle", str(where), "v", code=1)
    lines = [line for line in done.stdout.decode().split("\n") if line]
    assert lines == ["sys/kernel/ostype", "0", "ended:", "process:", "subset:"]
    assert b"sys/kernel/domainname: Read-only file system" in done.stderr
    assert done.stderr.count(b"domainname: nonexistent directory") == 2, done.stderr


def test_what_lies_over_a_procfs_and_in_it_is_kept(cli: Cli, bundle, tmp_path: Path, lower: str) -> None:
    """One over another; one with less in place of a directory; one below something else; and one that something hides is not there at all."""
    source = tmp_path / "source"
    for name in ("stacked", "less", "deep", "hidden/proc"):
        (source / name).mkdir(parents=True)
    with _mounts(
        f"-t proc proc {source}/stacked",
        f"-t proc proc {source}/stacked",
        f"-t proc proc {source}/less",
        f"-t proc -o subset=pid,ro proc {source}/less/sys",
        f"-t proc proc {source}/deep",
        f"-t tmpfs -o mode=755 tmpfs {source}/deep/tty",
    ):
        (source / "deep/tty/proc").mkdir()
        (source / "deep/tty/proc/under").touch()
        with _procfs(source / "deep/tty/proc"):
            places = " ".join(f"/v/{name}" for name in ("stacked", "less", "deep", "deep/tty/proc"))
            script = f"for d in {places}; do ls -d $d/[0-9]* $d/self/* 2>/dev/null | wc -l; done; ls -d /v/*/meminfo; ls -A /v/less/sys /v/deep/tty; "
            script += "ls -d /v/deep/tty/proc/under /v/deep/tty/proc/meminfo 2>/dev/null"
            where = bundle("/bin/sh", "-c", script, change=_with(lower, bind(source, "/v", "rbind", "rw")))
            done = cli("run", "--bundle", str(where), "v", code=None)
            with _procfs(source / "hidden/proc"), _mounts(f"-t tmpfs tmpfs {source}/hidden"):
                hidden = cli("run", "--bundle", str(where), "v", code=None)
    assert done.stdout.decode().split() == [
        *"0000", "/v/deep/meminfo", "/v/less/meminfo", "/v/stacked/meminfo", "/v/deep/tty:", "proc", "/v/less/sys:", "/v/deep/tty/proc/meminfo"
    ], done  # fmt: skip
    assert hidden.stdout == done.stdout


def test_read_only_it_stays(cli: Cli, bundle, lower: str) -> None:
    mounts = bind(Path("/proc"), "/p", "bind", "ro"), bind(Path("/"), "/host", "rbind", "ro")
    script = "for f in /p /host/proc; do echo x >$f/sys/kernel/domainname; done"
    done = cli("run", "--bundle", str(bundle("/bin/sh", "-c", script, change=_with(lower, *mounts))), "v", code=1)
    assert done.stderr.count(b"Read-only file system") == 2


@pytest.mark.parametrize("lower", ["9p"], indirect=True)
def test_single_files_and_sysctls_are_the_hosts(cli: Cli, bundle, lower: str) -> None:
    """As lxcfs is used, and what is no process's."""
    mounts = (
        bind(Path("/proc/version"), "/version", "bind", "ro"),
        bind(Path("/proc/sys"), "/sysctl", "bind", "ro"),
    )
    script = "cat /version; cat /sysctl/kernel/random/boot_id"
    done = cli("run", "--bundle", str(bundle("/bin/sh", "-c", script, change=_with(lower, *mounts))), "v")
    expected = Path("/proc/version").read_bytes() + Path("/proc/sys/kernel/random/boot_id").read_bytes()
    assert done.stdout == expected


@pytest.mark.parametrize(
    "source", ["/proc/self", "/proc/thread-self", "/proc/1/environ", "/proc/{pid}/fd", "/proc/mounts"]
)
def test_what_is_a_processs_is_refused(cli: Cli, bundle, source: str) -> None:
    path = Path(source.format(pid=os.getpid()))
    where = bundle("/bin/true", change=_with("9p", bind(path, "/p", "bind", "ro")))
    lines = cli("create", "--bundle", str(where), "v", code=1).stderr.decode().splitlines()
    assert len(lines) == 1
    assert f"{path}: shows a process of the host" in lines[0]
    assert "/proc/stat" in lines[0]


def test_none_comes_later(cli: Cli, bundle, tmp_path: Path, lower: str) -> None:
    """What the host mounts after the start stays out, rslave or not: it might be a procfs."""
    source = tmp_path / "source"
    (source / "later").mkdir(parents=True)
    subprocess.run(["mount", "--bind", "--make-shared", source, source], check=True)
    try:
        script = "echo started; until [ -e /v/go ]; do sleep 0.1; done; ls /v/later | wc -l; mount | grep -c later"
        where = bundle("/bin/sh", "-c", script, change=_with(lower, bind(source, "/v", "rbind", "rslave")))
        with (tmp_path / "out").open("wb") as out:
            cli.create("v", where, stdout=out)
        cli("start", "v")
        eventually((tmp_path / "out").read_bytes, "it has started")
        with _procfs(source / "later"):
            (source / "go").touch()
            cli.wait_status("v", "stopped")
        assert (tmp_path / "out").read_text() == "started\n0\n0\n"
        cli("delete", "v")
    finally:
        subprocess.run(["umount", source], check=True)


@pytest.mark.parametrize("annotations", [{}, {options.ROOTFS: "persistent"}], ids=["volatile", "persistent"])
def test_nor_one_inside_the_rootfs(cli: Cli, bundle, rootfs: Path, tmp_path: Path, lower: str, annotations) -> None:
    """The container's own procfs covers only what is at /proc."""
    own = tmp_path / "rootfs"
    subprocess.run(["cp", "-a", rootfs, own], check=True)

    def change(config: JsonDict) -> None:
        _with(lower, **annotations)(config)
        config["root"] = {"path": str(own), "readonly": False}

    with _procfs(own / "home"):
        script = SEEN.format("/home", os.getpid()) + "; ls -d /home/meminfo"
        done = cli("run", "--bundle", str(bundle("/bin/sh", "-c", script, change=change)), "v")
    assert done.stdout == b"0\n/home/meminfo\n", done


def _sets(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line[:6]: int(line.split()[1], 16) for line in lines if line.startswith("Cap")}


def test_qemu_and_virtiofsd_have_few_capabilities(cli: Cli, bundle, tmp_path: Path, lower: str) -> None:
    cli.create("v", bundle("/bin/sleep", "1000", change=_with(lower, bind(tmp_path, "/v", "bind"))))
    shim = psutil.Process(cli.state("v")["pid"])
    files = sum(1 << number for number in _NUMBERS.values())
    for process in shim.children(recursive=True):
        sets = _sets(process.pid)
        assert sets["CapInh"] == sets["CapAmb"] == 0
        if "qemu" in process.name():
            assert sets["CapBnd"] == sets["CapPrm"] == sets["CapEff"] == files
        else:
            assert not sets["CapBnd"] & (1 << 19 | 1 << 17 | 1 << 16 | 1 << 12)  # SYS_PTRACE, RAWIO, MODULE, NET_ADMIN
    cli("delete", "--force", "v")
