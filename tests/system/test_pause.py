"""``pause`` and ``resume``: a container that stands still, by QEMU, and what other verbs do with it. runc is held to the same where it says something."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from rundctl.host import patience

from .conftest import DEADLINE_S, RUNDCTL, Cli, JsonDict, eventually
from .steps import Stepper

SLEEP = ("/bin/sleep", "1000")
WORK = ("/bin/sh", "-c", "while :; do :; done")
COUNT = ("/bin/sh", "-c", "i=0; while :; do echo $i; i=$((i + 1)); done")
TRAP = ("/bin/sh", "-c", "trap 'echo got; exit 5' TERM; echo ready; while :; do sleep 0.1; done")
HUNG_S = patience.seconds(20.0)


def qemu_of(cli: Cli, container: str) -> psutil.Process:
    shim = psutil.Process(cli.state(container)["pid"])
    return next(child for child in shim.children() if "qemu" in child.name())


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@pytest.fixture
def running(cli: Cli, bundle: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Start a container; its stdout is the file that is returned."""

    def start(name: str, *args: str) -> Path:
        out = tmp_path / f"{name}.out"
        with out.open("wb") as file:
            cli.create(name, bundle(*args), stdout=file)
        cli("start", name)
        return out

    return start


# Beside runc


class Runc:
    """runc with its own root; a container whose limits it may set on this host."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "runc"

    def __call__(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        argv = ["runc", "--root", str(self.root), *words]
        return subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=DEADLINE_S, check=False)


@pytest.fixture
def runc(tmp_path: Path, spec: JsonDict) -> Iterator[tuple[Runc, str]]:
    """A container of runc's that is created and sleeps once it is started."""
    command, name = Runc(tmp_path), f"pause-{os.getpid()}"
    spec["process"] |= {"args": list(SLEEP), "rlimits": []}
    spec["root"]["readonly"] = True
    directory = tmp_path / "runc-bundle"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(spec))
    with (tmp_path / "runc.err").open("wb") as err:
        made = subprocess.run(
            ["runc", "--root", str(command.root), "create", "--bundle", str(directory), name],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err, check=False,
        )  # fmt: skip
    assert made.returncode == 0, (tmp_path / "runc.err").read_text()
    yield command, name
    command("delete", "--force", name)


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    """runc's message out of its log line; ours, without its hint."""
    text = done.stderr.decode().strip()
    if 'msg="' in text:
        return text.partition('msg="')[2].removesuffix('"').replace("\\", "")
    return text.removeprefix("rundctl: ").partition(" (")[0]


def _story(call: Callable[..., subprocess.CompletedProcess[bytes]], name: str) -> Iterator[tuple[object, ...]]:
    """What verbs say and how they exit, and the status after each."""
    for words in (
        ("resume",), ("pause",), ("pause",), ("start",), ("resume",), ("start",), ("resume",), ("pause",), ("pause",), ("start",),
        ("delete",), ("resume",), ("pause",), ("kill", "KILL"),
    ):  # fmt: skip
        verb, *arguments = words
        done = call(verb, name, *arguments)
        if words == ("kill", "KILL"):
            eventually(lambda: b"stopped" in call("state", name).stdout, "stopped")
        status = json.loads(call("state", name).stdout)["status"]
        yield (words, done.returncode, _said(done).replace(name, "NAME"), status)
    for verb in ("pause", "resume", "start"):
        done = call(verb, name)
        yield (verb, done.returncode, _said(done))
    for verb in ("pause", "resume"):
        done = call(verb, "no-such-container")
        yield (verb, done.returncode, "does not exist" in _said(done))


def test_messages_codes_and_statuses_are_runc_s(cli: Cli, bundle, runc: tuple[Runc, str]) -> None:
    command, name = runc
    cli.create(name, bundle(*SLEEP))
    expected = list(_story(command, name))
    assert [entry[3] for entry in expected[:9]] == [
        "created", "paused", "paused", "paused", "created", "running", "running", "paused", "paused"
    ]  # fmt: skip
    assert list(_story(lambda *words: cli(*words, code=None), name)) == expected


def test_list_and_state_show_it(cli: Cli, running) -> None:
    running("p", *SLEEP)
    pid = cli.state("p")["pid"]
    cli("pause", "p")
    state = cli.state("p")
    assert (state["status"], state["pid"]) == ("paused", pid)
    assert b"paused" in cli("list").stdout
    cli("resume", "p")
    assert cli.status("p") == "running"


# That it stands still


def test_a_paused_container_burns_no_cpu(cli: Cli, running) -> None:
    running("p", *WORK)
    qemu = qemu_of(cli, "p")
    eventually(lambda: cpu_s(qemu) > 1, "it works")
    cli("pause", "p")
    before, since = cpu_s(qemu), time.monotonic()
    time.sleep(3)  # what is measured is that nothing happens
    spent, elapsed = cpu_s(qemu) - before, time.monotonic() - since
    assert spent / elapsed < 0.05, (spent, elapsed)
    cli("resume", "p")
    eventually(lambda: cpu_s(qemu) > before + 1, "it works again")


def test_output_stops_and_goes_on_without_a_gap(cli: Cli, running) -> None:
    out = running("p", *COUNT)
    for _ in range(3):
        seen = out.stat().st_size
        eventually(lambda seen=seen: out.stat().st_size > seen + 10_000, "it counts")
        cli("pause", "p")
        eventually(_stays(out), "what was under way has arrived")
        seen = out.stat().st_size
        cli("resume", "p")
    eventually(lambda: out.stat().st_size > seen, "it counts on")
    cli("kill", "p", "KILL")
    cli.wait_status("p", "stopped")
    numbers = out.read_bytes().splitlines()[:-1]
    assert numbers == [b"%d" % number for number in range(len(numbers))]


def _stays(path: Path) -> Callable[[], bool]:
    def probe() -> bool:
        size = path.stat().st_size
        time.sleep(0.3)
        return path.stat().st_size == size

    return probe


def test_output_that_its_reader_did_not_take_is_delivered_after_the_end(cli: Cli, bundle) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as stdout:
        cli.create("p", bundle(*COUNT), stdout=stdout)
    cli("start", "p")
    qemu = qemu_of(cli, "p")
    _idle(qemu)  # pipe, shim and guest are full
    cli("pause", "p")
    kill = threading.Thread(target=cli, args=("kill", "p", "KILL"), daemon=True)
    kill.start()
    with os.fdopen(reader, "rb") as stdin:
        data = stdin.read()
    kill.join()  # its pipes are descriptors of ours
    assert len(data) > 64 * 1024, "more than the pipe held"
    numbers = data.splitlines()[:-1]
    assert numbers == [b"%d" % number for number in range(len(numbers))]
    cli.wait_status("p", "stopped")


def _idle(process: psutil.Process) -> None:
    def probe() -> bool:
        before = cpu_s(process)
        time.sleep(1)
        return cpu_s(process) - before < 0.02

    eventually(probe, "it has nothing to do")


def test_the_time_of_day_is_right_after_it(cli: Cli, running) -> None:
    out = running("p", "/bin/sh", "-c", "while :; do date +%s.%N 2>/dev/null || date +%s; sleep 0.2; done")
    eventually(lambda: out.read_bytes().count(b"\n") > 2, "it tells the time")
    cli("pause", "p")
    time.sleep(3)  # what the guest must not have slept
    said = out.read_bytes().count(b"\n")
    now = time.time()
    cli("resume", "p")
    eventually(lambda: out.read_bytes().count(b"\n") > said + 3, "it tells the time again")
    last = float(out.read_bytes().splitlines()[said + 2].split(b".")[0])
    assert last >= int(now) - 1


# Its end, and signals


@pytest.mark.parametrize("verb", [("kill", "p", "KILL"), ("kill", "--all", "p", "KILL"), ("delete", "--force", "p")])
def test_a_paused_container_ends_at_once(cli: Cli, running, verb: tuple[str, ...]) -> None:
    running("p", *WORK)
    cli("pause", "p")
    shim = cli.state("p")["pid"]
    record = cli.root / "p" / "exit"
    cli(*verb)
    eventually(lambda: not psutil.pid_exists(shim) or psutil.Process(shim).status() == "zombie", "its shim has ended")
    if verb[0] == "kill":
        assert "code=137\nreason=stopped\n" in record.read_text(), "ended by itself, not by the deadline"


def test_signals_wait_and_their_senders_do_not(cli: Cli, running) -> None:
    out = running("p", *TRAP)
    eventually(lambda: out.read_bytes() == b"ready\n", "ready")
    cli("pause", "p")
    cli("kill", "p", "TERM")
    assert (cli.status("p"), out.read_bytes()) == ("paused", b"ready\n")
    cli("resume", "p")
    cli.wait_status("p", "stopped")
    assert out.read_bytes() == b"ready\ngot\n"
    assert "code=5\n" in (cli.root / "p" / "exit").read_text()


def test_a_signal_to_the_pid_waits_too(cli: Cli, running) -> None:
    out = running("p", *TRAP)
    eventually(lambda: out.read_bytes() == b"ready\n", "ready")
    cli("pause", "p")
    os.kill(cli.state("p")["pid"], signal.SIGTERM)
    cli("resume", "p")
    cli.wait_status("p", "stopped")
    assert out.read_bytes() == b"ready\ngot\n"


def test_run_ends_with_137_when_it_is_killed_paused(cli: Cli, bundle) -> None:
    with cli.popen("run", "--bundle", str(bundle(*SLEEP)), "p") as run:
        eventually(lambda: b"running" in cli("state", "p", code=None).stdout, "running")
        cli("pause", "p")
        cli("kill", "p", "KILL")
        assert run.wait(DEADLINE_S) == 137


# What else may happen


def test_what_was_created_can_be_paused_and_then_started(cli: Cli, bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with out.open("wb") as file:
        cli.create("p", bundle("/bin/echo", "hello"), stdout=file)
    cli("pause", "p")
    assert b"cannot start a container in the paused state" in cli("start", "p", code=1).stderr
    cli("resume", "p")
    assert cli.status("p") == "created"
    cli("start", "p")
    cli.wait_status("p", "stopped")
    assert out.read_bytes() == b"hello\n"


def test_a_cold_boot_can_be_paused(cli: Cli, bundle) -> None:
    cli.create("p", bundle(*WORK), "--template", "off")
    cli("start", "p")
    cli("pause", "p")
    _idle(qemu_of(cli, "p"))
    cli("resume", "p")
    assert cli.status("p") == "running"


def test_a_hung_qemu_hangs_nobody(cli: Cli, running) -> None:
    running("p", *SLEEP)
    qemu = qemu_of(cli, "p")
    qemu.suspend()
    before = time.monotonic()
    assert b"did not answer" in cli("pause", "p", code=1).stderr
    assert time.monotonic() - before < HUNG_S
    assert cli.status("p") == "running"
    qemu.resume()
    cli.wait_status("p", "paused")  # late, and true
    cli("resume", "p")
    cli("delete", "--force", "p")


def test_kill_9_of_the_verb_leaves_truth(cli: Cli, running, tmp_path: Path) -> None:
    running("p", *WORK)
    qemu = qemu_of(cli, "p")
    stepper = Stepper(cli, tmp_path)
    steps = {}
    for verb in ("pause", "resume"):
        assert stepper(0, signal.SIGKILL, verb, "p") == 0
        steps[verb] = stepper.told()
    assert min(steps.values()) > 1, steps
    for step in range(1, min(steps.values()) + 1):
        for verb in ("pause", "resume"):
            stepper(step, signal.SIGKILL, verb, "p")  # or it is refused: the one before did or left something undone
        status = eventually(lambda: _settled(cli, "p"), "settled")
        before = cpu_s(qemu)
        if status == "running":
            eventually(lambda before=before: cpu_s(qemu) > before + 0.2, "running means that it runs")
        else:
            _idle(qemu)
            cli("resume", "p")


def _settled(cli: Cli, name: str) -> str:
    first = cli.status(name)
    time.sleep(0.3)
    return first if cli.status(name) == first else ""


def test_many_at_once(cli: Cli, running) -> None:
    names = [f"p{number}" for number in range(4)]
    for name in names:
        running(name, *SLEEP)
    for verb, status in (("pause", "paused"), ("resume", "running")):
        calls = [cli.popen(verb, name) for name in names for _ in range(3)]
        codes = [call.wait(DEADLINE_S) for call in calls]
        assert [sorted(codes[at : at + 3]) for at in range(0, len(codes), 3)] == [[0, 1, 1]] * len(names), verb
        assert {cli.status(name) for name in names} == {status}


def test_pause_and_delete_at_once(cli: Cli, running) -> None:
    for _ in range(3):
        running("p", *SLEEP)
        with cli.popen("pause", "p") as pause, cli.popen("delete", "--force", "p") as delete:
            assert delete.wait(DEADLINE_S) == 0
            assert pause.wait(DEADLINE_S) in (0, 1)
        assert cli("list", "-q").stdout == b""
    with suppress(FileNotFoundError):
        (cli.root / "p").rmdir()


def test_the_command_needs_an_id(cli: Cli) -> None:
    for verb in ("pause", "resume"):
        done = subprocess.run([RUNDCTL, verb], capture_output=True, check=False)
        assert (done.returncode, b"missing argument 'ID'" in done.stderr.lower() or b"'id'" in done.stderr.lower()) == (
            1,
            True,
        )
