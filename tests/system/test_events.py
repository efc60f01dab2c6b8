"""``events``: the container's figures out of its guest, its cost out of the host, in runc's JSON; and who has run out of memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from rundctl.host import patience

from .conftest import Cli, JsonDict, eventually

MIB = 1 << 20
LIMIT = 64 * MIB
SLEEP = ("/bin/sleep", "1000")
# Holds 30 MB in a file in memory, and burns CPU when it is told to.
WORK = "head -c 30000000 /dev/zero > /dev/shm/held; echo held; read go; i=0; while [ $i -lt 50000 ]; do i=$((i + 1)); done; echo done; read forever"
# One child of it is killed for want of memory each time a line comes in; the first process goes on.
FILL = "while read line; do tail /dev/zero; echo filled; done; exit 3"
DEADLINE_S = patience.seconds(120.0)


def limited(config: JsonDict) -> None:
    config["linux"]["resources"] = {"memory": {"limit": LIMIT}, "pids": {"limit": 50}}


@pytest.fixture
def started(cli: Cli, bundle: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[..., tuple[Path, int]]]:
    """Start a shell script in a container with limits; the file it writes to and a descriptor that it reads."""
    pipes: list[int] = []

    def start(name: str, script: str) -> tuple[Path, int]:
        reader, writer = os.pipe()
        pipes.append(writer)
        out = tmp_path / f"{name}.out"
        with out.open("wb") as stdout:
            cli.create(name, bundle("/bin/sh", "-c", script, change=limited), stdin=reader, stdout=stdout)
        os.close(reader)
        cli("start", name)
        return out, writer

    yield start
    for pipe in pipes:
        os.close(pipe)


def figures(cli: Cli, name: str) -> JsonDict:
    lines = cli("events", "--stats", name).stdout.splitlines()
    assert len(lines) == 1
    event: JsonDict = json.loads(lines[0])
    assert (event["type"], event["id"], list(event)) == ("stats", name, ["type", "id", "data"])
    return dict(event["data"])


@contextmanager
def following(cli: Cli, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], JsonDict]]]:
    """`events`, and the next line that it prints."""
    with cli.popen("events", *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:

        def line() -> JsonDict:
            assert process.stdout
            return dict(json.loads(process.stdout.readline()))

        yield process, line
        process.kill()


def _shape(data: Any) -> Any:
    """Names and kinds, without figures: numbers of devices, sizes and counters of the kernel differ."""
    if isinstance(data, dict):
        return {key: _shape(value) for key, value in data.items() if key not in ("raw", "hugetlb", "blkio", "host")}
    return type(data).__name__


# Go leaves out what is 0.
OPTIONAL = {
    "usage",
    "max",
    "cache",
    "limit",
    "total",
    "percpu",
    "percpu_kernel",
    "percpu_user",
    "periods",
    "throttledPeriods",
    "throttledTime",
}


def _without_optional(shape: Any) -> Any:
    if not isinstance(shape, dict):
        return shape
    return {
        key: _without_optional(value)
        for key, value in shape.items()
        if not (key in OPTIONAL and value == "int") and "percpu" not in key
    }


def test_the_json_is_runc_s(cli: Cli, started, spec: JsonDict, tmp_path: Path) -> None:
    """Beside the installed runc: the same fields in the same order, `host` aside."""
    name = f"events-{os.getpid()}"
    started(name, "read forever")
    ours = figures(cli, name)
    spec["process"] |= {"args": list(SLEEP), "rlimits": []}
    spec["root"]["readonly"] = True
    bundle = tmp_path / "runc"
    bundle.mkdir()
    (bundle / "config.json").write_text(json.dumps(spec))
    runc = ["runc", "--root", str(tmp_path / "runc-root")]
    null = subprocess.DEVNULL
    subprocess.run(
        [*runc, "run", "--detach", "--bundle", bundle, name], stdin=null, stdout=null, stderr=null, check=True
    )
    try:
        theirs = json.loads(subprocess.run([*runc, "events", "--stats", name], capture_output=True, check=True).stdout)
    finally:
        subprocess.run([*runc, "delete", "--force", name], check=True)
    assert list(theirs) == ["type", "id", "data"]
    assert list(ours) == [*theirs["data"], "host"]
    assert _without_optional(_shape(ours)) == _without_optional(_shape(theirs["data"]))
    for part in ("cpu", "cpuset", "memory"):
        optional = OPTIONAL | {"percpu", "percpu_kernel", "percpu_user"}
        assert [key for key in ours[part] if key not in optional] == [
            key for key in theirs["data"][part] if key not in optional
        ]


def test_figures_are_plausible(cli: Cli, started) -> None:
    out, stdin = started("e", WORK)
    eventually(lambda: out.read_bytes() == b"held\n", "it holds", DEADLINE_S)
    before, since = figures(cli, "e"), time.monotonic()
    os.write(stdin, b"\n")
    eventually(lambda: b"done" in out.read_bytes(), "it has worked", DEADLINE_S)
    data, elapsed = figures(cli, "e"), time.monotonic() - since
    spent_s = (data["cpu"]["usage"]["total"] - before["cpu"]["usage"]["total"]) / 1e9
    assert 0.1 < spent_s < elapsed * 1.5, (spent_s, elapsed)
    parts = data["cpu"]["usage"]["kernel"] + data["cpu"]["usage"]["user"]
    assert abs(parts - data["cpu"]["usage"]["total"]) < 1e7
    assert 30_000_000 < data["memory"]["usage"]["usage"] < LIMIT + MIB
    assert data["memory"]["usage"]["limit"] == LIMIT
    assert data["memory"]["raw"]["shmem"] > 29_000_000
    assert data["pids"] == {"current": 1, "limit": 50}
    host = data["host"]
    assert host["cpu"]["total"] > before["host"]["cpu"]["total"]
    assert host["memory"]["usage"] > 30_000_000
    names = [process["name"] for process in host["processes"]]
    assert names[0] == "shim"
    assert any("qemu" in name for name in names[1:])
    assert host["processes"][0]["pid"] == cli.state("e")["pid"]
    assert host["processes"][0]["pss"] < MIB
    assert host["processes"][1]["pss"] > 30_000_000


def test_a_line_an_interval_until_the_end(cli: Cli, started) -> None:
    started("e", "read forever")
    since = time.monotonic()
    with following(cli, "--interval", "300ms", "e") as (process, line):
        assert [line()["type"] for _ in range(3)] == ["stats"] * 3
        assert time.monotonic() - since > 0.8
        cli("kill", "e", "KILL")
        out, errors = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0
        assert errors == b""
        assert all(json.loads(line)["type"] == "stats" for line in out.splitlines())


def test_out_of_memory_is_told_while_init_lives(cli: Cli, started) -> None:
    out, stdin = started("e", FILL)
    with following(cli, "--interval", "200ms", "e") as (process, line):
        line()
        for count in (1, 2):
            os.write(stdin, b"\n")
            eventually(lambda count=count: out.read_bytes() == b"filled\n" * count, "a child was killed", DEADLINE_S)
            events = []
            while (event := line())["type"] != "oom":
                events.append(event)
                assert len(events) < 100
            assert event == {"type": "oom", "id": "e"}
        assert cli.status("e") == "running"
        failures = figures(cli, "e")["memory"]["usage"]["failcnt"]
        assert failures > 0
        process.kill()


def test_out_of_memory_of_init_is_told_at_the_end(cli: Cli, bundle) -> None:
    cli.create("e", bundle("/bin/tail", "/dev/zero", change=limited))
    with following(cli, "--interval", "200ms", "e") as (process, line):
        assert line()["type"] == "stats"
        cli("start", "e")
        out, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0
        types = [json.loads(line)["type"] for line in out.splitlines()]
        assert types.count("oom") == 1


def test_interval_and_status_are_checked(cli: Cli, started) -> None:
    started("e", "read forever")
    for interval in ("0s", "-1s", "0"):
        assert b"duration interval must be greater than 0" in cli("events", "--interval", interval, "e", code=1).stderr
    for interval in ("5", "x", ""):
        assert (
            f'invalid value "{interval}" for flag --interval'.encode()
            in cli("events", f"--interval={interval}", "e", code=1).stderr
        )
    cli("kill", "e", "KILL")
    cli.wait_status("e", "stopped")
    for words in (("--stats",), ()):
        assert b"container with id e is not running" in cli("events", *words, "e", code=1).stderr
    assert b"container does not exist" in cli("events", "--stats", "none", code=1).stderr


def test_a_created_container_has_figures(cli: Cli, bundle) -> None:
    cli.create("e", bundle(*SLEEP))
    assert figures(cli, "e")["memory"]["usage"]["usage"] > 0


def test_a_paused_container_is_an_error_line_and_then_goes_on(cli: Cli, started) -> None:
    started("e", "read forever")
    with following(cli, "--interval", "200ms", "e") as (process, line):
        line()
        cli("pause", "e")
        assert b"container e is paused: its guest cannot be asked" in cli("events", "--stats", "e", code=1).stderr
        assert process.stderr
        assert b"is paused" in process.stderr.readline()
        cli("resume", "e")
        assert line()["type"] == "stats"


def test_a_hung_guest_is_an_error_line(cli: Cli, started) -> None:
    started("e", "read forever")
    shim = psutil.Process(cli.state("e")["pid"])
    qemu = next(child for child in shim.children() if "qemu" in child.name())
    with following(cli, "--interval", "200ms", "e") as (process, line):
        line()
        qemu.suspend()
        since = time.monotonic()
        assert process.stderr
        assert b"did not answer in time" in process.stderr.readline()
        assert time.monotonic() - since < 30
        qemu.send_signal(signal.SIGCONT)
        assert line()["type"] == "stats"
        assert process.poll() is None


def test_whoever_reads_may_go(cli: Cli, started) -> None:
    started("e", "read forever")
    with cli.popen("events", "--interval", "100ms", "e", stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(DEADLINE_S) == 128 + signal.SIGPIPE
    with cli.popen("events", "--interval", "1h", "e") as process:
        eventually(lambda: psutil.Process(process.pid).status() == "sleeping", "it waits")
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) in (128 + signal.SIGINT, -signal.SIGINT)
