"""``ps``: the processes in the guest as a table, by the container's numbers; the host's pids as JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from .conftest import Cli, JsonDict, eventually

HEAD = "UID        PID  PPID  C STIME TTY          TIME CMD"
CHILDREN = "sleep 1001 & sleep 1002 & (sleep 1003; true) & echo ready; wait"
MANY = 300
# More than one answer of the agent's holds.
CROWD = f"i=0; while [ $i -lt {MANY} ]; do sleep 1000 & i=$((i + 1)); done; echo ready; wait"
HOSTILE = "sh -c 'sleep 1000; true' \"$(printf '\\033[2J\\n\\342\\200\\256')\" & echo ready; wait"


@pytest.fixture
def running(cli: Cli, bundle: Callable[..., Path], tmp_path: Path) -> Callable[..., None]:
    """Start a shell script that says when it is ready."""

    def start(script: str, change: Callable[[JsonDict], object] | None = None) -> None:
        out = tmp_path / "out"
        with out.open("wb") as stdout:
            cli.create("p", bundle("/bin/sh", "-c", script, change=change), stdout=stdout)
        cli("start", "p")
        eventually(lambda: out.read_bytes() == b"ready\n", "ready", 120)

    return start


def lines(cli: Cli, *options: str) -> list[str]:
    return cli("ps", "p", *options).stdout.decode().splitlines()


def table(cli: Cli, *last_words: str) -> list[str]:
    """Once it has rows that end like that: who has been forked may not have called execve(2), nor forked in its turn, when the shell says "ready"."""

    def have_come() -> list[str]:
        found = lines(cli)
        return found if all(any(row.endswith(word) for row in found) for word in last_words) else []

    return eventually(have_come, f"rows that end with {last_words}")


def test_a_container_with_children(cli: Cli, running) -> None:
    running(CHILDREN)
    head, *rows = table(cli, " sleep 1001", " sleep 1002", " sleep 1003")
    assert head == HEAD
    fields = [row.split(None, 7) for row in rows]
    assert fields[0][:3] == ["root", "1", "0"]
    assert fields[0][7].startswith("/bin/sh -c sleep 1001 &")
    commands = {row[7]: row for row in fields}
    assert {"sleep 1001", "sleep 1002", "sleep 1003"} < set(commands)
    assert commands["sleep 1001"][2] == "1"
    subshell = commands["sleep 1003"][2]
    assert next(row for row in fields if row[1] == subshell)[2] == "1"
    assert len(fields) == 5
    assert all(row[5] == "?" for row in fields)


def test_the_numbers_are_those_that_the_container_sees(cli: Cli, bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with out.open("wb") as stdout:
        cli.create("p", bundle("/bin/sh", "-c", "sleep 1000 & echo $!; wait"), stdout=stdout)
    cli("start", "p")
    eventually(lambda: out.read_bytes().endswith(b"\n"), "told")
    table(cli, " sleep 1000")
    assert lines(cli, "-o", "pid,args")[1:][-1].split() == [out.read_text().strip(), "sleep", "1000"]


def test_beside_runc(cli: Cli, running, spec: JsonDict, tmp_path: Path) -> None:
    """The same headline and number of lines of `-ef` and of chosen columns; the same answers of what is wrong, or stopped."""
    running("sleep 1000 & echo ready; wait")
    name = f"ps-{os.getpid()}"
    spec["process"] |= {"args": ["/bin/sh", "-c", "sleep 1000 & wait"], "rlimits": []}
    spec["root"]["readonly"] = True
    bundle = tmp_path / "runc"
    bundle.mkdir()
    (bundle / "config.json").write_text(json.dumps(spec))
    null = subprocess.DEVNULL
    runc = ["runc", "--root", str(tmp_path / "runc-root")]
    subprocess.run(
        [*runc, "run", "--detach", "--bundle", bundle, name], stdin=null, stdout=null, stderr=null, check=True
    )

    def theirs(*words: str) -> tuple[int, list[str]]:
        done = subprocess.run([*runc, "ps", *words], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.splitlines()

    try:
        eventually(
            lambda: any(row.endswith(" sleep 1000") for row in theirs(name)[1]), "runc's container has its child"
        )
        table(cli, " sleep 1000")
        for options in ((), ("-ef",), ("-eo", "pid,ppid,args"), ("-o", "pid,comm")):
            code, expected = theirs(name, *options)
            found = lines(cli, *options)
            assert (code, found[0], len(found)) == (0, expected[0], len(expected))
            assert [row.split()[-1] for row in found] == [row.split()[-1] for row in expected]
        assert theirs("--format", "yaml", name)[0] == cli("ps", "--format", "yaml", "p", code=None).returncode == 1
        subprocess.run([*runc, "kill", name, "KILL"], check=True)
        eventually(lambda: theirs(name)[1] == [HEAD], "runc's container has ended")
        cli("kill", "p", "KILL")
        cli.wait_status("p", "stopped")
        assert (0, lines(cli)) == theirs(name)
        assert theirs("-f", "json", name) == (0, cli("ps", "-f", "json", "p").stdout.decode().splitlines())
    finally:
        subprocess.run([*runc, "delete", "--force", name], check=True)


def test_json_is_the_pid_that_callers_know(cli: Cli, bundle) -> None:
    cli.create("p", bundle("/bin/sleep", "1000"))
    for step in (("start", "p"), ("pause", "p"), ("resume", "p")):
        assert json.loads(cli("ps", "--format", "json", "p").stdout) == [cli.state("p")["pid"]]
        cli(*step)
    assert json.loads(cli("ps", "-f", "json", "p").stdout) == [cli.state("p")["pid"]]


def test_more_than_one_answer_holds(cli: Cli, running) -> None:
    running(CROWD)
    eventually(lambda: sum(row.endswith(" sleep 1000") for row in lines(cli)) == MANY, "all sleep", 120)
    head, *rows = lines(cli, "-o", "pid,args")
    assert head.split() == ["PID", "COMMAND"]
    assert len(rows) == MANY + 1
    pids = [int(row.split()[0]) for row in rows]
    assert pids == sorted(set(pids))
    assert sum(row.endswith("sleep 1000") for row in rows) >= MANY


def test_hostile_names(cli: Cli, running) -> None:
    running(HOSTILE)
    table(cli, " sleep 1000")
    text = cli("ps", "p").stdout.decode()
    assert len(text.splitlines()) == 4
    assert all(character.isprintable() or character == "\n" for character in text)


def test_users(cli: Cli, running) -> None:
    def change(config: JsonDict) -> None:
        config["process"]["user"] = {"uid": 1000, "gid": 1000}

    running("echo ready; sleep 1000; true", change)
    assert {line.split()[0] for line in lines(cli)[1:]} == {"1000"}


def test_paused_hung_and_unknown(cli: Cli, running) -> None:
    running("echo ready; sleep 1000; true")
    assert b"cannot answer ps's option" in cli("ps", "p", "aux", code=1).stderr
    assert b"container does not exist" in cli("ps", "none", code=1).stderr
    cli("pause", "p")
    assert b"container p is paused: its guest cannot be asked" in cli("ps", "p", code=1).stderr
    cli("resume", "p")
    shim = psutil.Process(cli.state("p")["pid"])
    qemu = next(child for child in shim.children() if "qemu" in child.name())
    qemu.suspend()
    assert b"did not answer in time" in cli("ps", "p", code=1).stderr
    qemu.send_signal(signal.SIGCONT)
    assert lines(cli)[0] == HEAD
