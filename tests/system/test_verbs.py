"""Every verb, as runc's users know it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from .conftest import DEADLINE_S, RUNDCTL, Cli, JsonDict, eventually

SLEEP = ("/bin/sh", "-c", "trap 'exit 7' TERM; while :; do sleep 1 & wait $!; done")


def test_the_five_verbs(cli: Cli, bundle) -> None:
    where = bundle(*SLEEP)
    cli.create("c1", where)
    created = cli.state("c1")
    assert created["status"] == "created"
    assert created["bundle"] == str(where)
    assert created["ociVersion"].startswith("1.")
    assert created["pid"] > 0
    cli("start", "c1")
    running = cli.state("c1")
    assert running["status"] == "running"
    assert running["pid"] == created["pid"]
    # A first process has no default actions: until the shell has set its trap, the signal does nothing.
    eventually(lambda: cli("kill", "c1", "TERM", code=None) and cli.status("c1") == "stopped", "c1 stopped")
    assert cli.state("c1")["pid"] == 0
    cli("delete", "c1")
    assert b"does not exist" in cli("state", "c1", code=1).stderr


def test_run_prints_and_exits_as_the_container_does(cli: Cli, bundle) -> None:
    done = cli("run", "--bundle", str(bundle("/bin/sh", "-c", "echo out; echo err >&2; exit 42")), "c2", code=42)
    assert done.stdout == b"out\n"
    assert done.stderr == b"err\n"


def test_the_guest_has_a_kernel_of_its_own(sh) -> None:
    assert sh("uname -r").stdout.decode().strip() != os.uname().release


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 255", 255), ("kill -9 $$", 0), ("sh -c 'kill -9 $$'; exit $?", 137)]
)
def test_exit_codes(sh, script: str, code: int) -> None:
    # PID 1 is immune to its own SIGKILL, with runc too.
    sh(script, code=code)


@pytest.mark.parametrize("name", ["KILL", "9", "SIGKILL", "kill"])
def test_kill_by_name_and_number(cli: Cli, bundle, name: str) -> None:
    with cli.popen("run", "--bundle", str(bundle(*SLEEP)), "k") as run:
        eventually(lambda: cli("state", "k", code=None).stdout.count(b"running"), "running")
        cli("kill", "k", name)
        assert run.wait(DEADLINE_S) == 137


def test_kill_all(cli: Cli, bundle) -> None:
    cli.create("k", bundle("/bin/sh", "-c", "sleep 1000"))
    cli("start", "k")
    cli("kill", "--all", "k", "KILL")
    cli.wait_status("k", "stopped")
    cli("kill", "--all", "k", "KILL")
    assert b"container not running" in cli("kill", "k", "KILL", code=1).stderr


def test_kill_all_reaches_what_hides_or_runs_away(cli: Cli, bundle, tmp_path: Path) -> None:
    """In a cgroup of any name and depth, and what is another process by the time its number has been read."""

    def change(config: JsonDict) -> None:
        next(mount for mount in config["mounts"] if mount["type"] == "cgroup")["options"].remove("ro")

    script = """
    cd /sys/fs/cgroup; hidden=.x deep=d; for i in $(seq 40); do deep=$deep/d; done; mkdir -p $hidden $deep
    hide() { echo 0 > $1/cgroup.procs; exec sleep 1000; }
    run() { run & exit; }
    mkfifo /tmp/alive; hide $hidden > /tmp/alive & hide $deep > /tmp/alive & run > /tmp/alive & exec 3< /tmp/alive
    trap '' TERM; until read x < $hidden/cgroup.procs && read x < $deep/cgroup.procs; do :; done
    echo ready
    cat <&3; echo all are gone
    """
    out = tmp_path / "out"
    with out.open("wb") as file:
        cli.create("k", bundle("/bin/sh", "-c", script, change=change), stdout=file)
    cli("start", "k")
    eventually(lambda: out.read_bytes() == b"ready\n", "ready")
    cli("kill", "--all", "k", "TERM")
    cli.wait_status("k", "stopped")
    assert out.read_bytes() == b"ready\nall are gone\n"


def test_run_forwards_signals(cli: Cli, bundle) -> None:
    """All that runc forwards: none ends `run` and leaves the container, nor stops `run`."""
    rtmin = signal.SIGRTMIN  # + 3 is what systemd sends to halt another
    sent = [
        signal.SIGHUP,
        signal.SIGURG,
        signal.SIGXCPU,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGABRT,
        rtmin,
        rtmin + 3,
        signal.SIGRTMAX,
    ]
    numbers = " ".join(str(int(number)) for number in sent)
    script = f"for n in {numbers}; do trap \"echo $n\" $n; done; trap 'exit 5' TERM; echo ready; while :; do sleep 1 & wait $!; done"
    with cli.popen("run", "--bundle", str(bundle("/bin/sh", "-c", script)), "f", stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"ready\n"
        for number in sent:
            run.send_signal(number)
            assert int(run.stdout.readline()) == number
        run.send_signal(signal.SIGTERM)
        assert run.wait(DEADLINE_S) == 5


def test_a_signal_to_the_pid_reaches_the_container(cli: Cli, bundle) -> None:
    script = "trap 'echo got; exit 5' TERM; echo ready; while :; do sleep 1 & wait $!; done"
    with cli.popen("run", "--bundle", str(bundle("/bin/sh", "-c", script)), "f", stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"ready\n"
        os.kill(cli.state("f")["pid"], signal.SIGTERM)
        assert run.stdout.read() == b"got\n"
        assert run.wait(DEADLINE_S) == 5


def test_term_ends_a_created_container(cli: Cli, bundle) -> None:
    cli.create("c", bundle(*SLEEP))
    cli("kill", "c", "TERM")
    cli.wait_status("c", "stopped")


def test_detached_and_kept(cli: Cli, bundle) -> None:
    assert cli.popen("run", "--detach", "--bundle", str(bundle(*SLEEP)), "d").wait(DEADLINE_S) == 0
    assert cli.status("d") == "running"
    cli("delete", "--force", "d")
    cli("run", "--keep", "--bundle", str(bundle("/bin/true")), "kept")
    assert cli.status("kept") == "stopped"
    cli("delete", "kept")


def test_pid_file(cli: Cli, bundle, tmp_path: Path) -> None:
    cli.create("p", bundle(*SLEEP), "--pid-file", str(tmp_path / "pid"))
    text = (tmp_path / "pid").read_text()
    assert text == str(cli.state("p")["pid"])


def test_list(cli: Cli, bundle) -> None:
    assert cli("list", "-q").stdout == b""
    where = bundle(*SLEEP)
    cli.create("b", where)
    cli.create("a", where)
    assert cli("list", "--quiet").stdout == b"a\nb\n"
    rows = json.loads(cli("list", "--format", "json").stdout)
    assert [(row["id"], row["status"]) for row in rows] == [("a", "created"), ("b", "created")]
    table = cli("list").stdout.decode().splitlines()
    assert table[0].split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert len(table) == 3


def test_delete(cli: Cli, bundle) -> None:
    where = bundle(*SLEEP)
    cli.create("d", where)
    cli("start", "d")
    refused = cli("delete", "d", code=1).stderr
    assert b"cannot delete container d that is not stopped: running" in refused
    cli("delete", "--force", "d")
    cli.create("d", where)
    cli("delete", "d")  # created: killed first, as runc does
    cli("delete", "--force", "d")
    assert b"does not exist" in cli("delete", "d", code=1).stderr


def test_start_twice_and_too_late(cli: Cli, bundle) -> None:
    cli.create("s", bundle(*SLEEP))
    cli("start", "s")
    assert b"cannot start an already running container" in cli("start", "s", code=1).stderr
    cli("kill", "s", "KILL")
    cli.wait_status("s", "stopped")
    assert b"cannot start a container that has stopped" in cli("start", "s", code=1).stderr


def test_what_cannot_be_marked_as_started_is_not_started(cli: Cli, bundle, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        cli.create("m", bundle("/bin/echo", "ran"), stdout=out)
    in_the_way = cli.root / "m/started.new"
    in_the_way.mkdir()
    said = cli("start", "m", code=1).stderr
    assert b"start m: mark it as started: is a directory" in said
    assert cli.status("m") == "created"
    in_the_way.rmdir()
    cli("start", "m")
    cli.wait_status("m", "stopped")
    assert (tmp_path / "out").read_bytes() == b"ran\n"


def test_features_and_version() -> None:
    features = json.loads(subprocess.run([RUNDCTL, "features"], capture_output=True, check=True).stdout)
    assert "mount" in features["linux"]["namespaces"]
    version = subprocess.run([RUNDCTL, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert version[0].startswith("rundctl version ")
    assert any(line.startswith("spec: 1.") for line in version)


def test_the_pid_is_safe_to_enter(cli: Cli, bundle, rootfs: Path) -> None:
    """What ``podman cp`` does with the pid must not reach the host's root."""
    cli.create("n", bundle(*SLEEP))
    pid = cli.state("n")["pid"]
    for namespace in ("pid", "mnt"):
        assert os.readlink(f"/proc/{pid}/ns/{namespace}") != os.readlink(f"/proc/self/ns/{namespace}")
    assert os.getsid(pid) == pid
    root = Path(f"/proc/{pid}/root")
    assert sorted(os.listdir(root)) == sorted(os.listdir(rootfs))
    assert os.listdir(root / "proc") == []
    with pytest.raises(OSError, match="Read-only"):
        (root / "evil").write_text("x")
    assert not (rootfs / "evil").exists()


def test_nothing_python_stays_and_the_shim_is_small(cli: Cli, bundle) -> None:
    cli.create("m", bundle(*SLEEP))
    cli("start", "m")
    pid = cli.state("m")["pid"]
    mine = [each for each in psutil.process_iter(["name", "cmdline"]) if str(cli.root) in (each.info["cmdline"] or [])]
    assert [each for each in mine if each.status() != psutil.STATUS_ZOMBIE] == []
    assert not any("python" in child.name() for child in psutil.Process(pid).children(recursive=True))
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    pss_kib = int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:")))
    assert pss_kib < 1024


def test_a_container_is_found_without_its_root(cli: Cli, bundle) -> None:
    """podman's clean-up calls ``delete --force`` without the runtime's flags."""
    cli.create("lost", bundle(*SLEEP))
    subprocess.run([RUNDCTL, "state", "lost"], capture_output=True, check=True)
    subprocess.run([RUNDCTL, "delete", "--force", "lost"], check=True, env={})
    assert b"does not exist" in cli("state", "lost", code=1).stderr


def test_a_created_container_waits(cli: Cli, bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with out.open("wb") as file:
        cli.create("w", bundle("/bin/echo", "started"), stdout=file)
    assert out.read_bytes() == b""
    cli("start", "w")
    cli.wait_status("w", "stopped")
    assert out.read_bytes() == b"started\n"


def test_timings(cli: Cli, bundle, tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = cli("--log", str(log), "run", "--timings", "--bundle", str(bundle("/bin/true")), "t")
    for stage in ("bundle", "restore", "plan", "start", "join", "clone"):
        assert stage in done.stderr.decode()
        assert stage in log.read_text()
