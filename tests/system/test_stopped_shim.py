"""A shim that does nothing any more (stopped, frozen, nobody takes connections): each verb ends in bounded time, with one line or none."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rundctl.host import patience

from .conftest import DEADLINE_S, Cli, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

SLEEP = ("/bin/sleep", "1000")
BOUND_S = patience.seconds(30.0)  # on any machine: where nobody gives up it is for ever
STILL = ("stopped", "full", "frozen")


def _fill(opened: ExitStack, directory: Path) -> None:
    """Connect until the backlog has no room."""
    fd = os.open(directory, os.O_PATH)  # the socket's path may be longer than an address can be
    opened.callback(os.close, fd)
    with pytest.raises(BlockingIOError):
        for _ in range(1000):
            client = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.setblocking(False)
            client.connect(f"/proc/self/fd/{fd}/control.sock")


def _freezer(pid: int) -> Path:
    """The file by which its cgroup of version 1 is frozen."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "freezer":
            return Path(f"/sys/fs/cgroup/freezer{path}/freezer.state")
    pytest.skip("the host has no freezer of version 1")


@pytest.fixture
def still(cli: Cli, bundle, request: pytest.FixtureRequest) -> Iterator[str]:
    """A running container whose shim was brought to a standstill, as asked for."""
    cli.create("k", bundle(*SLEEP))
    cli("start", "k")
    pid = cli.state("k")["pid"]
    with ExitStack() as opened:
        if request.param == "frozen":
            state = _freezer(pid)
            state.write_text("FROZEN")
            eventually(lambda: state.read_text() == "FROZEN\n", "it is frozen")
        else:
            os.kill(pid, signal.SIGSTOP)
        if request.param == "full":
            _fill(opened, cli.root / "k")
        yield "k"


@pytest.mark.parametrize("still", STILL, indirect=True)
def test_kill_kills(cli: Cli, still: str) -> None:
    before = time.monotonic()
    cli("kill", still, "KILL")
    assert time.monotonic() - before < BOUND_S
    cli.wait_status(still, "stopped")
    cli("delete", still)


@pytest.mark.parametrize("still", STILL, indirect=True)
def test_delete_force_deletes(cli: Cli, still: str) -> None:
    before = time.monotonic()
    assert cli("delete", "--force", still).stderr == b""
    assert time.monotonic() - before < BOUND_S
    assert cli("list", "-q").stdout == b""


@pytest.mark.parametrize("still", ["full"], indirect=True)
def test_a_damaged_record_does_not_keep_it(cli: Cli, still: str) -> None:
    """All that `delete --force` then has is the socket; the shim gets the request when it goes on."""
    pid = cli.state(still)["pid"]
    cgroups = {line.split(":", 2)[2] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()}
    (cli.root / still / "record.json").write_text("{")
    before = time.monotonic()
    assert b"is damaged" in cli("delete", "--force", still).stderr
    assert time.monotonic() - before < BOUND_S
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "it ends")
    for directory, _, _ in os.walk("/sys/fs/cgroup", topdown=False):  # as the warning says
        if any(path != "/" and directory.endswith(path) for path in cgroups):
            Path(directory).rmdir()


@pytest.mark.parametrize("still", ["full"], indirect=True)
def test_others_tell_that_there_is_no_answer(cli: Cli, still: str) -> None:
    """All at once, since each waits for as long as it does."""
    verbs = [("kill", still, "TERM"), ("events", "--stats", still), ("ps", still), ("pause", still)]
    with ExitStack() as opened:
        calls = [opened.enter_context(cli.popen(*verb, stderr=subprocess.PIPE)) for verb in verbs]
        assert cli.status(still) == "running"
        assert cli("list", "-q").stdout == b"k\n"
        assert cli("ps", "--format", "json", still).stdout.startswith(b"[")
        for verb, call in zip(verbs, calls, strict=True):
            said = call.communicate(timeout=DEADLINE_S)[1].decode()
            assert call.returncode == 1, verb
            assert said.count("\n") == 1, (verb, said)
            assert "did not answer in time" in said, (verb, said)
    cli("delete", "--force", still)
