"""Debian's podman drives rundctl as it drives crun: images from a tarball, ``--network none``."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from . import podman_rig
from .conftest import DEADLINE_S, RUNDCTL, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .podman_rig import Podman

pytestmark = pytest.mark.usefixtures("template")


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory, rootfs: Path) -> Iterator[Podman]:
    with podman_rig.with_busybox(tmp_path_factory.mktemp("podman"), rootfs) as command:
        yield command


@pytest.fixture(autouse=True)
def nothing_left(podman: Podman) -> Iterator[None]:
    yield
    podman_rig.check_nothing_left(podman)


def test_run(podman: Podman) -> None:
    done = podman.run("--rm", "localhost/bb", "/bin/sh", "-c", "echo out; echo err >&2; uname -r; exit 3", code=3)
    assert done.stdout.startswith(b"out\n")
    assert done.stderr == b"err\n"


def test_run_stays_until_removed(podman: Podman) -> None:
    podman.run("--name", "stays", "localhost/bb", "/bin/echo", "hello")
    # podman's own clean-up, a process of its own, turns "stopped" into "exited".
    eventually(lambda: podman.inspect("stays")["State"]["Status"] == "exited", "cleaned up")
    inspected = podman.inspect("stays")
    assert inspected["State"]["ExitCode"] == 0
    assert inspected["OCIRuntime"] == "rundctl"
    assert podman("logs", "stays").stdout == b"hello\n"
    assert podman("start", "--attach", "stays").stdout == b"hello\n"
    podman("rm", "stays")


def test_stdin(podman: Podman) -> None:
    assert podman.run("--rm", "-i", "localhost/bb", "/bin/cat", stdin=b"in\n").stdout == b"in\n"


def test_detached_logs_stop(podman: Podman) -> None:
    script = "trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 1 & wait $!; done"
    podman.run("-d", "--name", "d", "localhost/bb", "/bin/sh", "-c", script)
    eventually(lambda: podman("logs", "d").stdout == b"up\n", "log line")
    inspected = json.loads(podman("inspect", "d").stdout)[0]["State"]
    assert inspected["Running"]
    assert inspected["Pid"] > 0
    podman("stop", "--time", "10", "d")
    assert podman("logs", "d").stdout == b"up\nbye\n"
    assert json.loads(podman("inspect", "d").stdout)[0]["State"]["ExitCode"] == 4


def test_stop_of_one_that_does_not_listen(podman: Podman) -> None:
    podman.run("-d", "--name", "deaf", "localhost/bb", "/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    podman("stop", "--time", "1", "deaf")
    assert json.loads(podman("inspect", "deaf").stdout)[0]["State"]["ExitCode"] == 137


def test_kill_and_wait(podman: Podman) -> None:
    podman.run("-d", "--name", "k", "localhost/bb", "/bin/sleep", "1000")
    podman("kill", "k")
    assert podman("wait", "k").stdout == b"137\n"


def test_kill_by_signal(podman: Podman) -> None:
    podman.run(
        "-d",
        "--name",
        "u",
        "localhost/bb",
        "/bin/sh",
        "-c",
        "trap 'exit 9' USR1; echo up; while :; do sleep 1 & wait $!; done",
    )
    eventually(lambda: podman("logs", "u").stdout == b"up\n", "log line")
    podman("kill", "--signal", "USR1", "u")
    assert podman("wait", "u").stdout == b"9\n"


def test_pause_and_unpause(podman: Podman) -> None:
    podman.run("-d", "--name", "p", "localhost/bb", "/bin/sh", "-c", "trap 'exit 4' TERM; while :; do sleep 0.1; done")
    podman("pause", "p")
    state = podman.inspect("p")["State"]
    assert (state["Status"], state["Paused"]) == ("paused", True)
    assert b"paused" in podman("pause", "p", code=125).stderr
    podman("unpause", "p")
    assert podman.inspect("p")["State"]["Status"] == "running"
    podman("stop", "p")
    assert podman.inspect("p")["State"]["ExitCode"] == 4


def test_stop_and_kill_and_rm_of_a_paused_one(podman: Podman) -> None:
    podman.run("-d", "--name", "p", "localhost/bb", "/bin/sleep", "1000")
    podman("pause", "p")
    podman("stop", "--time", "1", "p", code=None)  # podman 4.3 refuses, 5 kills it
    podman("kill", "p", code=None)
    podman("rm", "--force", "--time", "0", "p")
    assert not podman("ps", "--all", "--quiet").stdout.split()


def test_rm_force(podman: Podman) -> None:
    podman.run("-d", "--name", "r", "localhost/bb", "/bin/sleep", "1000")
    podman("rm", "--force", "--time", "0", "r")
    assert podman("container", "exists", "r", code=1)


def test_create_then_start(podman: Podman) -> None:
    podman("create", "--network", "none", "--name", "c", "localhost/bb", "/bin/echo", "x")
    assert podman("start", "--attach", "c").stdout == b"x\n"


@pytest.mark.parametrize(("command", "code"), [("/bin/nosuch", 127), ("/etc/passwd", 126), ("nosuch", 127)])
def test_exit_codes_of_what_cannot_start(podman: Podman, command: str, code: int) -> None:
    done = podman.run("--rm", "localhost/bb", command, code=code)
    assert command.encode() in done.stderr


def test_cp_never_touches_the_hosts_root(podman: Podman, tmp_path: Path) -> None:
    podman.run("-d", "--name", "cp", "localhost/bb", "/bin/sleep", "1000")
    podman("cp", "cp:/etc/passwd", str(tmp_path / "passwd"))
    assert "user:x:1000" in (tmp_path / "passwd").read_text()
    (tmp_path / "evil").write_text("evil")
    podman("cp", str(tmp_path / "evil"), "cp:/etc/rundctl-evil", code=None)
    assert not Path("/etc/rundctl-evil").exists()
    podman("cp", "cp:/proc/1/root/etc/hostname", str(tmp_path / "leak"), code=125)


def test_cp_of_a_link_into_proc_reads_nothing_of_the_host(podman: Podman, tmp_path: Path) -> None:
    """An image that holds ``y -> /proc/2/root``: with a procfs in the shim's namespace this once read a host file."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    podman.run("-d", "--name", "link", "localhost/bb", "/bin/sleep", "1000")
    for pid in (1, 2, 3):
        done = podman("cp", f"link:/proc/{pid}/root{secret}", str(tmp_path / "out"), code=None)
        assert done.returncode != 0
    assert not (tmp_path / "out").exists()


def test_by_virtiofs(podman: Podman, tmp_path: Path) -> None:
    """The merged mount that podman made is served, and its volumes."""
    (tmp_path / "file").write_text("of the host\n")
    flags = ("--annotation", "io.rundctl.rootfs.lower=virtiofs", "--volume", f"{tmp_path}:/v")
    script = "cat /v/file; echo mine >/v/new; ls /bin/busybox; echo x >/etc/new && cat /etc/new"
    done = podman.run("--rm", *flags, "localhost/bb", "/bin/sh", "-c", script)
    assert done.stdout == b"of the host\n/bin/busybox\nx\n"
    assert (tmp_path / "new").read_text() == "mine\n"


def test_user_workdir_env_readonly_tmpfs(podman: Podman) -> None:
    out = podman.run(
        "--rm", "--user", "1000:1000", "--workdir", "/tmp", "--env", "A=b", "--read-only", "--tmpfs", "/scratch", "--hostname", "box",
        "--cap-drop", "all", "localhost/bb", "/bin/sh", "-c", "id -u; pwd; echo $A; hostname; touch /x || echo ro; grep CapBnd /proc/self/status",
    ).stdout.decode().split("\n")  # fmt: skip
    assert out[:5] == ["1000", "/tmp", "b", "box", "ro"]
    assert out[5].split()[1] == "0" * 16


def test_a_disk_of_its_own_holds_what_podman_wrote(podman: Podman) -> None:
    """podman's merged overlay, its own upper directory included."""
    podman("create", "--network", "none", "--name", "disk", "--annotation", "io.rundctl.rootfs.lower=blk",
        "--annotation", "io.rundctl.rootfs=volatile", "localhost/bb", "/bin/sh", "-c",
        "cat /mine; echo more >> /mine; ls -d /lost+found; grep -c ' / ext4 ' /proc/mounts")  # fmt: skip
    podman("cp", "-", "disk:/", stdin=_tar("mine", b"by podman\n"))
    done = podman("start", "--attach", "disk", code=None)
    assert done.stdout == b"by podman\n1\n", done.stderr
    again = podman("start", "--attach", "disk", code=None)
    assert again.stdout == done.stdout, "what it wrote died with it"


def _tar(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def test_many_at_once(podman: Podman) -> None:
    flags = ["/usr/bin/podman", *podman.flags, "run", "--rm", "--network", "none", "localhost/bb", "/bin/sh", "-c"]
    running = [subprocess.Popen([*flags, f"exit {code}"], env=podman.environment) for code in range(5)]
    before = time.monotonic()
    assert [process.wait(DEADLINE_S) for process in running] == list(range(5))
    assert time.monotonic() - before < 120


def test_an_image_of_podman_s_layers(podman: Podman, tmp_path: Path) -> None:
    """Containers of one image have one EROFS image: the layers of `podman build`, merged as podman's own mount shows them."""
    (tmp_path / "Containerfile").write_text(
        "FROM localhost/bb\nRUN echo changed > /etc/hosts && rm /etc/group\nCOPY Containerfile /new\n"
    )
    podman("build", "--network", "none", "--runtime", "/usr/sbin/runc", "--tag", "localhost/layered", str(tmp_path))
    keys, seen = set(), {}
    for name in ("first", "second"):
        podman("create", "--network", "none", "--name", name, "localhost/layered", "/bin/true")
        merged = Path(podman("mount", name).stdout.decode().strip())
        done = subprocess.run([RUNDCTL, "image", "build", merged], capture_output=True, text=True, check=True)
        keys.add(done.stdout.strip())
        seen = {path: (merged / path).read_text() for path in ("etc/hosts", "etc/passwd", "new")}
        podman("umount", name)
    (key,) = keys
    listed = json.loads(subprocess.run([RUNDCTL, "image", "list", "--json"], capture_output=True, check=True).stdout)
    (entry,) = (each for each in listed if each["key"] == key)
    assert (entry["state"], len(entry["content"]["directories"])) == ("ok", 3)
    home = os.environ.get("RUNDCTL_HOME", "/var/lib/rundctl")
    out = tmp_path / "out"
    subprocess.run(["fsck.erofs", f"--extract={out}", f"{home}/images/{key}/image"], check=True, capture_output=True)
    assert {path: (out / path).read_text() for path in seen} == seen
    assert seen["etc/hosts"] == "changed\n"
    assert not (out / "etc/group").exists()
    podman("rm", "first", "second")
    podman("rmi", "localhost/layered")
    assert key in subprocess.run([RUNDCTL, "image", "prune"], capture_output=True, text=True, check=True).stdout.split()


def test_limits(podman: Podman) -> None:
    flags = {"memory": "96m", "cpus": "0.5", "pids-limit": "20", "cpu-shares": "512", "blkio-weight": "300"}
    script = (
        "cd /sys/fs/cgroup; echo $(cat memory.max cpu.max pids.max cpu.weight); mknod /tmp/f c 10 229; mknod /tmp/h c 10 228;"
        "for name in f h; do (: </tmp/$name) 2>&1 | grep -c 'not permitted'; done"
    )
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    done = podman.run(
        "--rm", *words, "--device-cgroup-rule", "c 10:229 rwm", "--cap-add", "MKNOD", "localhost/bb", "/bin/sh", "-c", script
    )  # fmt: skip
    assert done.stdout.decode().splitlines() == [f"{96 << 20} 50000 100000 20 20", "0", "1"], done.stderr


def test_update(podman: Podman) -> None:
    report = "trap 'cat /sys/fs/cgroup/memory.max' USR1; echo on; while sleep 0.1; do :; done"
    podman.run("-d", "--name", "u", "--memory", "96m", "localhost/bb", "/bin/sh", "-c", report)
    eventually(lambda: b"on" in podman("logs", "u").stdout, "it runs")
    podman("update", "--memory", "64m", "--cpu-shares", "256", "u")
    podman("kill", "--signal", "USR1", "u")
    eventually(lambda: str(64 << 20).encode() in podman("logs", "u").stdout, "it has the other limit")


def test_out_of_memory(podman: Podman) -> None:
    podman.run(
        "--name",
        "o",
        "--memory",
        "64m",
        "localhost/bb",
        "/bin/dd",
        "if=/dev/zero",
        "of=/dev/null",
        "bs=80M",
        "count=1",
        code=137,
    )
    eventually(lambda: podman.inspect("o")["State"]["ExitCode"] == 137, "its exit code is known")
    # conmon looks at the host's cgroup, and the kill was the guest's.
    assert podman.inspect("o")["State"]["OOMKilled"] is False


def test_podman_s_containers_are_in_a_pool_of_their_parent(podman: Podman) -> None:
    parent = f"/rundctl-podman-{os.getpid()}"

    def pool() -> dict[str, Any]:
        found = json.loads(
            subprocess.run([RUNDCTL, "pool", "status", "--json"], capture_output=True, check=True).stdout
        )
        return next(dict(each) for each in found if each["parent"] == parent)

    subprocess.run([RUNDCTL, "pool", "fill", "--parent", parent, "--size", "2"], check=True)
    try:
        podman.run("-d", "--name", "pooled", "--cgroup-parent", parent, "localhost/bb", "/bin/sleep", "1000")
        inspected = podman.inspect("pooled")
        lines = Path(f"/proc/{inspected['State']['Pid']}/cgroup").read_text().splitlines()
        paths = {line.split(":", 2)[2] for line in lines}
        assert paths <= {f"{parent}/libpod-{inspected['Id']}", f"{parent}/rundctl.pool.0", f"{parent}/rundctl.pool.1"}
        assert (pool()["free"], pool()["leased"]) == (1, 1)
        podman("rm", "--force", "--time", "0", "pooled")
        eventually(lambda: (pool()["free"], pool()["leased"]) == (2, 0), "it is given back, or another is made")
    finally:
        subprocess.run([RUNDCTL, "pool", "drain", "--parent", parent], check=True)
    eventually(lambda: _is_removed(parent), "podman's own is free: conmon's cgroup, and the parent that it is in")


def _is_removed(parent: str) -> bool:
    """Nobody but the last process's end says when a cgroup may be removed."""
    found = [
        path for controller in Path("/sys/fs/cgroup").iterdir() if (path := Path(f"{controller}{parent}")).exists()
    ]
    for path in found:
        subprocess.run(["find", path, "-depth", "-type", "d", "-delete"], check=False, capture_output=True)
    return not any(path.exists() for path in found)


def test_what_is_no_program(podman: Podman, tmp_path: Path) -> None:
    """As with runc: 1, and its words, not 126."""
    (tmp_path / "text").write_text("no program\n")
    (tmp_path / "text").chmod(0o755)
    done = podman.run("--rm", "-v", f"{tmp_path}/text:/text", "localhost/bb", "/text", code=1)
    assert done.stderr == b"exec /text: exec format error\n"


def test_an_init_that_wants_cgroups(podman: Podman) -> None:
    """Where the host has version 1 podman binds its hierarchy of systemd, of which the guest has none."""
    script = "mkdir /sys/fs/cgroup/init && echo 0 > /sys/fs/cgroup/init/cgroup.procs && cat /proc/self/cgroup"
    done = podman.run("--rm", "--systemd=always", "localhost/bb", "/bin/sh", "-c", script)
    assert done.stdout == b"0::/init\n"


def test_privileged_is_refused_with_its_cause(podman: Podman) -> None:
    words = podman.run("--rm", "--privileged", "localhost/bb", "/bin/true", code=126).stderr
    assert (
        b"more are devices of the host, and do not exist in the VM (--privileged asks for all devices of the host"
        in words
    )
    way_out = ("--cap-add", "all", "--security-opt", "seccomp=unconfined", "--security-opt", "unmask=all")
    done = podman.run("--rm", *way_out, "localhost/bb", "/bin/grep", "CapEff", "/proc/self/status")
    own = next(line for line in Path("/proc/self/status").read_bytes().splitlines() if line.startswith(b"CapBnd"))
    assert done.stdout.split()[1] == own.split()[1]  # all that podman may give
