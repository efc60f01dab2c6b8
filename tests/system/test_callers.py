"""What callers do that nobody expects: closed stdio, odd ids, signals in the middle, limits of their own."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys

import psutil
import pytest

from .conftest import DEADLINE_S, Cli, eventually
from .steps import Stepper, some

SLEEP = ("/bin/sleep", "1000")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_stdio(cli: Cli, bundle, tmp_path, closed: str) -> None:
    """What is closed is /dev/null to the container, and no file of ours: a lock it kept would block every later verb."""
    where = bundle("/bin/sh", "-c", "cat; echo out; exit 7")
    log = tmp_path / "log"
    verbs = cli.argv("--log", str(log), "run", "--bundle", str(where), "c")
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *verbs],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 7, (done.stderr, log.read_text())
    assert done.stdout == (b"" if ">&-" in closed.replace("2>&-", "") else b"out\n")
    assert log.read_text() == ""


def _ignoring_sigchld(cli: Cli, *arguments: str) -> list[str]:
    """Not by the installed script: where its first interpreter is dash, that has SIGCHLD at its default again."""
    python = [sys.executable, "-I", "-m", "rundctl", *cli.argv(*arguments)[1:]]
    return ["/bin/bash", "-c", "trap '' CHLD; exec \"$@\"", "sh", *python]


def test_sigchld_ignored(cli: Cli, bundle, tmp_path) -> None:
    """The kernel then reaps children before their parent can, and sends no signal: `run` waited for ever, hooks and tools were lost."""

    def change(config) -> None:
        hook = {"path": "/bin/sh", "args": ["sh", "-c", f"grep SigIgn: /proc/self/status > {tmp_path}/hook"]}
        config["hooks"] = {kind: [{**hook, "env": ["PATH=/bin"]}] for kind in ("prestart", "poststop")}

    where = bundle("/bin/sh", "-c", "grep SigIgn: /proc/self/status; exit 7", change=change)
    done = subprocess.run(
        _ignoring_sigchld(cli, "run", "--bundle", str(where), "c"),
        stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    for status in (done.stdout, (tmp_path / "hook").read_bytes()):
        assert int(status.split()[1], 16) & (1 << (signal.SIGCHLD - 1)) == 0


def test_sigchld_ignored_and_the_end_of_qemu(cli: Cli, bundle) -> None:
    """Its shim sees it, whoever made that."""
    argv = _ignoring_sigchld(cli, "create", "--bundle", str(bundle(*SLEEP)), "c")
    null = subprocess.DEVNULL
    subprocess.run(argv, stdin=null, stdout=null, stderr=null, timeout=DEADLINE_S, check=True)
    qemu = next(child for child in psutil.Process(cli.state("c")["pid"]).children() if "qemu" in child.name())
    qemu.kill()
    cli.wait_status("c", "stopped")
    assert "code=137" in (cli.root / "c/exit").read_text()


def test_closed_stdio_and_create(cli: Cli, bundle) -> None:
    argv = cli.argv("create", "--bundle", str(bundle(*SLEEP)), "c")
    subprocess.run(["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *argv], timeout=DEADLINE_S, check=True)
    cli("start", "c")
    assert cli.status("c") == "running"


def test_every_verb_refuses_what_is_no_id(cli: Cli, bundle) -> None:
    cli.create("c", bundle(*SLEEP))
    for verb in ("state", "start", "kill", "delete"):
        for bad in ("../c", "c/.", "..", "", "a b"):
            said = cli(verb, "--", bad, code=1).stderr
            assert b"container" in said, (verb, bad)
            assert b"does not exist" not in said, (verb, bad)
        assert cli.status("c") == "created", verb  # what a verb had done would still be seen


def test_force_is_no_excuse(cli: Cli, bundle) -> None:
    cli.create("c", bundle(*SLEEP))
    cli("delete", "--force", f"../{cli.root.name}/c", code=1)
    assert cli.status("c") == "created"


def test_long_ids(cli: Cli, bundle) -> None:
    where = str(bundle("/bin/true"))
    cli("run", "--bundle", where, "a" * 200)
    done = cli("run", "--bundle", where, "a" * 255, code=1)
    assert b"longer than" in done.stderr
    assert b"longer than" in cli("state", "a" * 300, code=1).stderr


def test_an_id_with_a_leading_dot_is_listed(cli: Cli, bundle) -> None:
    cli.create(".hidden", bundle(*SLEEP))
    assert cli("list", "-q").stdout == b".hidden\n"


def test_what_an_earlier_process_of_our_pid_left(cli: Cli, bundle) -> None:
    """A call that was killed may leave a half-made directory, and its pid comes again."""
    for pid in range(os.getpid(), os.getpid() + 2000):  # one of them will be the call's own
        for name in (f".new:{pid}", f".old:{pid}"):
            (cli.root / name).mkdir()
            (cli.root / name / "record.json").touch()
    cli("run", "--bundle", str(bundle("/bin/true")), "c")
    eventually(lambda: not list(cli.root.iterdir()) or _sweep(cli), "swept")


def _sweep(cli: Cli) -> bool:
    """Those of live processes stay: remove them as the test's own."""
    for path in cli.root.iterdir():
        (path / "record.json").unlink()
        path.rmdir()
    return True


def test_kill_zero_asks_whether_it_runs(cli: Cli, bundle) -> None:
    cli.create("c", bundle(*SLEEP))
    cli("kill", "c", "0")
    cli("kill", "c", "KILL")
    cli.wait_status("c", "stopped")
    assert b"container not running" in cli("kill", "c", "0", code=1).stderr


@pytest.mark.parametrize("verb", ["create", "run"])
@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_while_it_is_made_leaves_all_or_nothing(
    cli: Cli, bundle, tmp_path, verb: str, signo: signal.Signals
) -> None:
    """At each step the call either ends by the signal, and nothing is left, or makes the container as if there had been none."""
    stepper = Stepper(cli, tmp_path)
    words = (verb, "--bundle", str(bundle(*SLEEP)), "c")
    assert _struck(cli, stepper, 0, signo, words) in (0, 137)
    ends = {step: _struck(cli, stepper, step, signo, words) for step in some(stepper.told(), 6)}
    by_signal = (-signo, 130) if signo == signal.SIGINT else (-signo,)
    assert all(code in (0, 137, *by_signal) for code in ends.values()), ends
    assert [code in by_signal for code in ends.values()][:3] == [True] * 3, ends


def _struck(cli: Cli, stepper: Stepper, step: int, signo: signal.Signals, words: tuple[str, ...]) -> int:
    """The call's exit code. What it has made is whole, and ended; once it is ended nothing is left."""
    with stepper.popen(step, signo, *words) as call:
        # Once it runs the signal is the container's; sleep, its PID 1, ignores it.
        eventually(lambda: call.poll() is not None or b"running" in cli("state", "c", code=None).stdout, "an end")
        if call.poll() is None:
            cli("kill", "c", "KILL")
        code = call.wait(DEADLINE_S)
    if code == 0:
        assert cli.status("c") == "created", step
        cli("delete", "--force", "c")
    assert list(cli.root.iterdir()) == [], (step, code)
    return code


def test_limits_are_the_callers_where_none_are_named(cli: Cli, bundle) -> None:
    where = bundle("/bin/sh", "-c", "ulimit -u; ulimit -n; ulimit -c", change=lambda c: c["process"].pop("rlimits"))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NPROC, (4321, 4321))
        resource.setrlimit(resource.RLIMIT_NOFILE, (765, 999))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    done = subprocess.run(
        cli.argv("run", "--bundle", str(where), "c"),
        stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE_S, preexec_fn=limit, check=False,
    )  # fmt: skip
    assert done.stdout == b"4321\n765\n0\n"


@pytest.mark.parametrize("verb", [("start",), ("kill", "TERM"), ("kill", "0")])
def test_a_delete_that_is_faster_is_told_plainly(cli: Cli, bundle, verb: tuple[str, ...]) -> None:
    """In words of states: neither of sockets, nor "no such ...", which podman reads as a missing command."""
    for number in range(4):
        cli.create("c", bundle(*SLEEP))
        with (
            cli.popen(verb[0], "c", *verb[1:], stderr=subprocess.PIPE) as call,
            cli.popen("delete", "--force", "c") as delete,
        ):
            said = call.stderr.read() if call.stderr else b""
            assert delete.wait(DEADLINE_S) == 0, number
        known = (b"not running", b"has stopped", b"does not exist")
        assert call.returncode == 0 or any(words in said for words in known), said
