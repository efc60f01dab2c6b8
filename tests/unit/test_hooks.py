"""Hooks: real processes, their input, environment, failures and deadlines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from rundctl.errors import GuestError, HostError
from rundctl.oci import hooks

if TYPE_CHECKING:
    from pathlib import Path

STATE = {"ociVersion": "1.2.1", "id": "c1", "status": "creating", "annotations": {"big": "x" * 200_000}}


def _shell(script: str, **more: Any) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script], **more}


def test_state_on_stdin_and_exact_environment(tmp_path: Path) -> None:
    script = f'/bin/cat > {tmp_path}/state; /usr/bin/env > {tmp_path}/env; echo "$0" > {tmp_path}/name'
    hooks.run("prestart", [{"path": "/bin/sh", "args": ["sh", "-c", script, "me"], "env": ["A=b=c", "D="]}], STATE, "/")
    assert json.loads((tmp_path / "state").read_text()) == STATE
    lines = set((tmp_path / "env").read_text().splitlines())
    assert {"A=b=c", "D="} <= lines
    assert {line.partition("=")[0] for line in lines} <= {"A", "D", "PWD", "_", "SHLVL", "OLDPWD"}
    assert (tmp_path / "name").read_text() == "me\n"


@pytest.mark.parametrize(("more", "expected"), [({}, "caller"), ({"env": None}, "caller"), ({"env": []}, "none")])
def test_without_a_list_of_variables_it_has_the_callers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], expected: str
) -> None:
    """As in runc: else a script without a PATH would not find what is in /usr/sbin."""
    monkeypatch.setenv("OF_THE_CALLER", "caller")
    hooks.run("prestart", [_shell(f"echo ${{OF_THE_CALLER:-none}} > {tmp_path}/env", **more)], STATE, "/")
    assert (tmp_path / "env").read_text() == f"{expected}\n"


def test_the_first_failure_ends_it(tmp_path: Path) -> None:
    wanted = [_shell("exit 0"), _shell("echo bad >&2; echo luck; exit 3"), _shell(f"touch {tmp_path}/never")]
    with pytest.raises(HostError) as caught:
        hooks.run("createRuntime", wanted, STATE, "/")
    assert caught.value.message == "error running createRuntime hook #1 /bin/sh: exit status 3: bad luck"
    assert not list(tmp_path.iterdir())


def test_all_run_where_failures_are_only_told(tmp_path: Path) -> None:
    wanted = [_shell("exit 1"), {"path": "/no/such/hook"}, _shell(f"touch {tmp_path}/ran"), _shell("kill -9 $$")]
    assert hooks.run_all("poststop", wanted, STATE, "/") == [
        "error running poststop hook #0 /bin/sh: exit status 1",
        "error running poststop hook #1 /no/such/hook: No such file or directory",
        "error running poststop hook #3 /bin/sh: killed by signal 9",
    ]
    assert (tmp_path / "ran").exists()


def test_deadline() -> None:
    started = time.monotonic()
    with pytest.raises(HostError, match="no end within 1 s"):
        hooks.run("prestart", [_shell("exec /bin/sleep 60", timeout=1)], STATE, "/")
    assert 1 <= time.monotonic() - started < 30


def test_a_daemon_left_behind_does_not_block(tmp_path: Path) -> None:
    started = time.monotonic()
    hooks.run("prestart", [_shell(f"/bin/sleep 60 & echo $! > {tmp_path}/pid")], STATE, "/")
    os.kill(int((tmp_path / "pid").read_text()), 9)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("path", ["sh", "a\0b", ""])
def test_paths_must_be_absolute_and_whole(path: str) -> None:
    with pytest.raises(HostError):
        hooks.run("prestart", [{"path": path}], STATE, "/")


def test_no_descriptor_leaks() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    hooks.run_all("poststop", [_shell("exit 1"), {"path": "/no"}], STATE, "/")
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_the_directory_is_the_one_asked_for_and_ours_stays(tmp_path: Path) -> None:
    before = os.getcwd()
    hook = _shell(f"/bin/pwd >> {tmp_path}/pwd")
    hooks.run("prestart", [hook], STATE, str(tmp_path))
    assert hooks.run_all("poststop", [hook], STATE, "/no/such/bundle") == []
    assert (tmp_path / "pwd").read_text() == f"{tmp_path}\n{before}\n", "poststop hooks run also if the bundle is gone"
    assert os.getcwd() == before


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGPIPE, signal.SIGUSR1])
def test_no_signal_is_ignored(tmp_path: Path, signo: int) -> None:
    """As with runc: neither those that the caller ignores, nor ours."""
    before = signal.getsignal(signo)
    signal.signal(signo, signal.SIG_IGN)
    try:
        hooks.run("prestart", [_shell(f"/bin/grep SigIgn: /proc/self/status > {tmp_path}/status")], STATE, "/")
    finally:
        signal.signal(signo, before)
    assert int((tmp_path / "status").read_text().split()[1], 16) & (1 << (signo - 1)) == 0


def test_the_end_of_the_container_ends_the_hook(tmp_path: Path) -> None:
    hook = _shell(f"echo $$ > {tmp_path}/pid; exec /bin/sleep 60")
    with subprocess.Popen(["/bin/sh", "-c", f"until [ -s {tmp_path}/pid ]; do :; done"]) as shim:
        pidfd = os.pidfd_open(shim.pid)
        try:
            with pytest.raises(GuestError, match="createRuntime hook #0 /bin/sh: killed"):
                hooks.run("createRuntime", [hook, hook], STATE, "/", pidfd)
        finally:
            os.close(pidfd)
    assert not os.path.exists(f"/proc/{(tmp_path / 'pid').read_text().strip()}")


def test_who_is_interrupted_leaves_no_hook(tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        if not (tmp_path / "pid").exists():
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            return
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    script = f"echo $$ > {tmp_path}/new; /bin/mv {tmp_path}/new {tmp_path}/pid; exec /bin/sleep 60"
    try:
        with pytest.raises(KeyboardInterrupt):
            hooks.run("prestart", [_shell(script)], STATE, "/")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not os.path.exists(f"/proc/{(tmp_path / 'pid').read_text().strip()}")


def test_three_descriptors_and_no_other(tmp_path: Path) -> None:
    """What the caller has let us inherit, a lock or the end of a pipe, is no hook's."""
    numbers = (8, 9, 10, 60, 251)
    null = os.open("/dev/null", os.O_RDONLY)
    opened = [number for number in numbers if not os.path.exists(f"/proc/self/fd/{number}")]
    try:
        for number in opened:
            os.dup2(null, number, inheritable=True)
        hooks.run(
            "prestart",
            [
                {
                    "path": "/bin/sh",
                    "args": ["sh", "-c", f"exec /bin/ls /proc/self/fd > {tmp_path}/fds"],
                    "env": ["PATH=/bin"],
                }
            ],
            STATE,
            "/",
        )
    finally:
        for number in (*opened, null):
            os.close(number)
    assert opened
    assert not {*map(str, numbers)} & {*(tmp_path / "fds").read_text().split()}


def test_what_a_hook_wrote_changes_no_terminal() -> None:
    with pytest.raises(HostError) as caught:
        hooks.run("prestart", [_shell(r"printf 'a\033[2Jb\302\233c\342\200\256d\n'; exit 1")], STATE, "/")
    assert caught.value.message.endswith(": a?[2Jb?c?d")


@pytest.mark.parametrize("timeout_s", [2_147_484, 2**31 - 1])
def test_a_long_timeout_is_no_error(timeout_s: int) -> None:
    """poll(2) counts milliseconds in an int."""
    hooks.run("prestart", [_shell("exit 0", timeout=timeout_s)], STATE, "/")


def test_an_interruption_ends_the_hook_and_is_heard(tmp_path: Path) -> None:
    """Not between its start and the wait for it, where nobody would end it."""
    program = f"""
import os, signal, sys
from rundctl.host import interruption
from rundctl.oci import hooks
sys.addaudithook(lambda event, _: os.kill(os.getpid(), signal.SIGTERM) if event == "os.posix_spawn" else None)
with interruption.Held():
    hooks.run("prestart", [{{"path": "/bin/sh", "args": ["sh", "-c", "echo $$ > {tmp_path}/pid; exec /bin/sleep 60"]}}], {{}}, "/")
"""
    done = subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": os.pathsep.join(sys.path)}, check=False)
    assert done.returncode == -signal.SIGTERM
    left = subprocess.run(
        ["/bin/sh", "-c", f"[ ! -s {tmp_path}/pid ] || [ ! -d /proc/$(cat {tmp_path}/pid) ]"], check=False
    )
    assert left.returncode == 0
