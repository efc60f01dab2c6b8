"""``kill -9`` of anything at any moment: ``state`` says stopped, ``delete`` cleans all (docs/adr/0003-process-model.md)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from rundctl.host import patience

from .conftest import DEADLINE_S, Cli, eventually
from .steps import Stepper, some

SLEEP = ("/bin/sleep", "1000")
BOUND_S = patience.seconds(30.0)  # on any machine; that it was not what is waited for otherwise, other facts say


def _qemu_of(pid: int) -> int:
    return next(child.pid for child in psutil.Process(pid).children() if "qemu" in child.name())


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(params=["created", "running"])
def container(request: pytest.FixtureRequest, cli: Cli, bundle) -> str:
    cli.create("k", bundle(*SLEEP))
    if request.param == "running":
        cli("start", "k")
    return "k"


def test_of_the_shim(cli: Cli, container: str) -> None:
    pid = cli.state(container)["pid"]
    qemu = _qemu_of(pid)
    os.kill(pid, signal.SIGKILL)
    cli.wait_status(container, "stopped")
    eventually(lambda: not _lives(qemu), "QEMU ends with its shim")
    cli("delete", container)


def test_of_qemu(cli: Cli, container: str) -> None:
    os.kill(_qemu_of(cli.state(container)["pid"]), signal.SIGKILL)
    cli.wait_status(container, "stopped")
    record = (cli.root / container / "exit").read_text()
    assert "reason=qemu" in record
    assert "code=137" in record
    cli("delete", container)


def test_of_qemu_while_output_waits_for_its_reader(cli: Cli, bundle) -> None:
    """Nobody is there who could take a signal: that is said, and not that there was no answer in time. KILL ends the wait."""
    out, stdout = os.pipe()
    cli.create("k", bundle("/bin/head", "-c", "150000", "/dev/zero"), stdout=stdout)
    os.close(stdout)
    cli("start", "k")
    pid = cli.state("k")["pid"]
    eventually(lambda: cli("kill", "k", "CONT", code=None).returncode == 1, "the container ends, and its shim waits")
    os.kill(_qemu_of(pid), signal.SIGKILL)
    assert b"container not running" in cli("kill", "k", "TERM", code=1).stderr
    assert cli.status("k") == "running"
    cli("kill", "k", "KILL")
    cli.wait_status("k", "stopped")
    os.close(out)
    cli("delete", "k")


def test_of_qemu_under_run(cli: Cli, bundle) -> None:
    with cli.popen("run", "--bundle", str(bundle(*SLEEP)), "k", stderr=subprocess.PIPE) as run:
        eventually(lambda: b"running" in cli("state", "k", code=None).stdout, "running")
        os.kill(_qemu_of(cli.state("k")["pid"]), signal.SIGKILL)
        assert run.wait(DEADLINE_S) == 137


@pytest.fixture
def stepper(cli: Cli, tmp_path: Path) -> Stepper:
    return Stepper(cli, tmp_path)


def test_of_create_at_any_step(cli: Cli, bundle, stepper: Stepper) -> None:
    """What it leaves is a container that was made, or something that only --force removes; and the id is free again."""
    words = ("create", "--bundle", str(bundle(*SLEEP)), "k")
    assert stepper(0, signal.SIGKILL, *words) == 0
    cli("delete", "--force", "k")
    steps = stepper.told()
    assert steps > 25  # of version 2 there is one hierarchy; all of version 1 take twice as many
    for step in some(steps, 12):
        assert stepper(step, signal.SIGKILL, *words) == -signal.SIGKILL, step
        for known in json.loads(cli("list", "--format", "json").stdout) or []:
            eventually(lambda: cli.status("k") in ("stopped", "created"), f"it has settled after step {step}")
            assert known["id"] == "k"
        cli("delete", "--force", "k")
        assert cli("list", "-q").stdout == b"", step


def test_of_create_before_it_had_its_id(cli: Cli) -> None:
    with subprocess.Popen(["sleep", "0"]) as dead:
        dead.wait()
    left, alive = cli.root / f".new:{dead.pid}", cli.root / f".new:{os.getpid()}"
    for directory in (left, alive):
        directory.mkdir()
        (directory / "record").write_text("{}")
    cli("delete", "k", code=1)
    cli("delete", "--force", "k")
    assert list(cli.root.iterdir()) == [alive]
    (alive / "record").unlink()
    alive.rmdir()


def test_of_start_at_any_step(cli: Cli, bundle, stepper: Stepper) -> None:
    """It runs or it does not, and goes on to be what it is."""
    where = bundle(*SLEEP)
    cli.create("k", where)
    assert stepper(0, signal.SIGKILL, "start", "k") == 0
    steps = stepper.told()
    cli("delete", "--force", "k")
    assert steps >= 3  # its descriptor of the shim's process, the connection, the request
    for step in range(1, steps + 1):
        cli.create("k", where)
        assert stepper(step, signal.SIGKILL, "start", "k") == -signal.SIGKILL, step
        assert cli.status("k") in ("created", "running"), step
        cli("delete", "--force", "k")


def test_of_delete_at_any_step(cli: Cli, bundle, stepper: Stepper) -> None:
    """Another delete does what it had not done."""
    where = bundle(*SLEEP)
    cli.create("k", where)
    assert stepper(0, signal.SIGKILL, "delete", "--force", "k") == 0
    steps = stepper.told()
    assert steps > 10
    for step in some(steps, 6):
        cli.create("k", where)
        assert stepper(step, signal.SIGKILL, "delete", "--force", "k") == -signal.SIGKILL, step
        cli("delete", "--force", "k")
        assert cli("list", "-q").stdout == b"", step


def test_of_the_launcher(cli: Cli, bundle) -> None:
    """The launcher lives for a millisecond: watched for, stopped by SIGKILL whenever it is seen."""
    for _ in range(5):
        with cli.popen("create", "--bundle", str(bundle(*SLEEP)), "k") as create:
            deadline = time.monotonic() + BOUND_S
            while create.poll() is None and time.monotonic() < deadline:
                for child in psutil.Process(create.pid).children() if create.poll() is None else []:
                    try:
                        os.kill(child.pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
            assert create.wait(DEADLINE_S) != 0
        assert cli("list", "-q").stdout == b""


def test_a_hung_guest_dies_within_three_seconds_of_kill(cli: Cli, container: str) -> None:
    os.kill(_qemu_of(cli.state(container)["pid"]), signal.SIGSTOP)
    before = time.monotonic()
    cli("kill", container, "KILL")
    cli.wait_status(container, "stopped")
    assert time.monotonic() - before < BOUND_S
    assert not (cli.root / container / "exit").exists(), "its shim was killed, and did not end by itself"
    cli("delete", container)


def test_a_hung_guest_dies_within_three_seconds_of_delete(cli: Cli, container: str) -> None:
    shim = cli.state(container)["pid"]
    qemu = _qemu_of(shim)
    os.kill(qemu, signal.SIGSTOP)
    before = time.monotonic()
    cli("delete", "--force", container)
    assert time.monotonic() - before < BOUND_S
    assert not _lives(shim)
    eventually(lambda: not _lives(qemu), "QEMU ends with its shim")


def test_a_hung_guest_refuses_other_signals_plainly(cli: Cli, bundle) -> None:
    cli.create("k", bundle(*SLEEP))
    cli("start", "k")
    qemu = _qemu_of(cli.state("k")["pid"])
    os.kill(qemu, signal.SIGSTOP)
    assert b"did not answer" in cli("kill", "k", "TERM", code=1).stderr
    assert b"did not answer" in cli("kill", "k", "TERM", code=1).stderr
    os.kill(qemu, signal.SIGCONT)
    cli("delete", "--force", "k")
    assert cli("list", "-q").stdout == b""


def test_delete_force_during_create(cli: Cli, bundle) -> None:
    with cli.popen("create", "--bundle", str(bundle(*SLEEP)), "k", stderr=subprocess.PIPE) as create:
        eventually(lambda: cli("list", "-q").stdout == b"k\n" or create.poll() is not None, "the id is taken")
        cli("delete", "--force", "k")
        create.wait(DEADLINE_S)
    cli("delete", "--force", "k")
    assert cli("list", "-q").stdout == b""
