"""Limits in real VMs: what is asked for can be used, and no more; who runs out of memory is told; other limits while it runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from rundctl.engine.cgroups.lease import places
from rundctl.engine.cgroups.limits import MEMORY_MIN

from .conftest import DEADLINE_S, Cli, JsonDict, eventually
from .runtimes import RUNC, bundled, runtime_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20
MARGIN_MIB = 12  # of a memory limit: the container's programs, and what its kernel keeps for it
FILL = "dd if=/dev/zero of=/dev/null bs={}M count=1"  # its buffer is memory of the container
BUSY = "trap 'echo $i' USR1; i=0; echo on; while :; do i=$((i+1)); done"


def limited(**resources: Any) -> Callable[[JsonDict], None]:
    def change(config: JsonDict) -> None:
        config["linux"]["resources"] = resources

    return change


@pytest.fixture
def record(cli: Cli) -> Callable[[str], JsonDict]:
    return lambda name: dict(json.loads((cli.root / name / "record.json").read_text()))


@pytest.fixture
def ending(cli: Cli) -> Callable[[str], dict[str, str]]:
    def read(name: str) -> dict[str, str]:
        eventually(lambda: cli.status(name) == "stopped", f"{name} stopped")
        lines = (cli.root / name / "exit").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    return read


@pytest.fixture
def host(record: Callable[[str], JsonDict]) -> Callable[..., Path]:
    """The first of some files that a container's cgroups on the host have."""

    def find(name: str, *files: str) -> Path:
        found = [Path(place.directory, file) for file in files for place in places(record(name)["cgroups"])]
        return next(path for path in found if path.exists())

    return find


@pytest.fixture
def logged(cli: Cli, bundle: Callable[..., Path], tmp_path: Path) -> Callable[..., Callable[[], list[str]]]:
    """Create and start a container that writes to a file; what it has written so far, line by line."""

    def start(name: str, script: str, change: Callable[[JsonDict], object]) -> Callable[[], list[str]]:
        log = tmp_path / f"{name}.log"
        with log.open("wb") as output:
            cli.create(name, bundle("/bin/sh", "-c", script, change=change), stdout=output)
        cli("start", name)
        return lambda: log.read_text().splitlines()

    return start


def members(file: Path) -> list[psutil.Process]:
    return [psutil.Process(int(pid)) for pid in (file.parent / "cgroup.procs").read_text().split()]


def cpu_s(file: Path) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in members(file))


def test_memory_can_be_used_to_its_limit(sh: Callable[..., Any]) -> None:
    sh("exec " + FILL.format(100 - MARGIN_MIB), change=limited(memory={"limit": 100 * MIB}))
    # dd maps its block and reads nothing into it: what is not touched may be more than the VM has.
    sh("exec dd if=/dev/null of=/dev/null bs=4G", change=limited(memory={"limit": 100 * MIB}))


def test_the_smallest_limit_runs_a_program_and_less_is_refused(cli: Cli, bundle: Any, sh: Callable[..., Any]) -> None:
    """Below it a program's own pages do not fit, and it reads them again and again for ever."""
    for limit in (1, 524_288, MEMORY_MIN - 1):
        refused = cli(
            "create", "--bundle", str(bundle("/bin/true", change=limited(memory={"limit": limit}))), "small", code=1
        )
        words = (
            f"memory.limit: expected at least {MEMORY_MIN} bytes (2 MiB), which a small program needs, got {limit}\n"
        )
        assert refused.stderr.decode() == f"rundctl: config.json: linux.resources.{words}"
    assert sh("ls -d /; cat /proc/self/comm", change=limited(memory={"limit": MEMORY_MIN})).stdout == b"/\ncat\n"


def test_out_of_memory_is_137_and_told(cli: Cli, logged: Any, ending: Any) -> None:
    logged("init", "exec " + FILL.format(110), limited(memory={"limit": 100 * MIB}))
    logged("child", FILL.format(110) + "; echo $?; exit 3", limited(memory={"limit": 100 * MIB}))
    logged("well", FILL.format(80) + "; exit 4", limited(memory={"limit": 100 * MIB}))
    ends = [(ending(name)["reason"], ending(name)["code"], ending(name)["oom"]) for name in ("init", "child", "well")]
    assert ends == [("container", "137", "1"), ("container", "3", "1"), ("container", "4", "0")]
    for name in ("init", "child", "well"):
        cli("delete", name)


def _squeeze(limit: Path) -> None:
    """By hand: the host's limit becomes what is used now and a little."""
    used = int(
        (limit.parent / limit.name.replace("limit_in_bytes", "usage_in_bytes").replace("max", "current")).read_text()
    )
    limit.write_text(str(used + 8 * MIB))


def test_the_vm_s_own_end_is_told(cli: Cli, bundle: Any, tmp_path: Path, host: Any) -> None:
    where = bundle("/bin/sh", "-c", "echo on; read x; " + FILL.format(60))
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        run = cli.popen("run", "--bundle", str(where), "squeezed", stdin=subprocess.PIPE, stdout=out, stderr=err)
    assert run.stdin is not None
    eventually(lambda: (tmp_path / "out").read_bytes() == b"on\n", "it runs")
    _squeeze(host("squeezed", "memory.limit_in_bytes", "memory.max"))
    run.stdin.write(b"go\n")
    run.stdin.close()
    assert run.wait(DEADLINE_S) == 137
    said = (tmp_path / "err").read_text()
    assert said == "rundctl: container squeezed ended: the host killed the VM: its cgroup ran out of memory\n"


def test_every_verb_that_meets_it_says_so(cli: Cli, logged: Any, ending: Any, host: Any) -> None:
    script = "trap '" + FILL.format(60) + "' USR1; echo on; while sleep 0.1; do :; done"
    lines = logged("squeezed", script, limited())
    eventually(lambda: lines() == ["on"], "it can be signalled")
    _squeeze(host("squeezed", "memory.limit_in_bytes", "memory.max"))
    cli("kill", "squeezed", "USR1")
    ended = ending("squeezed")
    assert (ended["reason"], ended["code"], ended["oom"]) == ("oom", "137", "1")
    for verb in (("start", "squeezed"), ("kill", "squeezed", "TERM"), ("update", "--pids-limit", "5", "squeezed")):
        assert "the host killed the VM: its cgroup ran out of memory" in cli(*verb, code=1).stderr.decode(), verb
    assert cli.state("squeezed")["status"] == "stopped"
    cli("delete", "squeezed")


def test_a_vm_s_limit_has_room_for_all_of_it(logged: Any, host: Any, cli: Cli) -> None:
    """The container at its limit, writing and reading files meanwhile: nobody is killed, and only page cache was given up on the host."""
    script = (
        f"{FILL.format(88)}; dd if=/dev/zero of=/root/f bs=1M count=150; cat /root/f >/dev/null; echo done; sleep 1000"
    )
    lines = logged("full", script, limited(memory={"limit": 100 * MIB}))
    eventually(lambda: "done" in lines(), "it has written all")
    limit = host("full", "memory.limit_in_bytes", "memory.max")
    assert int(limit.read_text()) == (192 + 32 + 32 + 2) * MIB or int(limit.read_text()) == (192 + 32 + 2) * MIB
    qemu = max(members(limit), key=lambda process: process.memory_info().rss)
    anonymous = qemu.memory_full_info().uss
    assert anonymous < int(limit.read_text()) - 16 * MIB
    cli("delete", "--force", "full")


def test_processes(sh: Callable[..., Any]) -> None:
    script = "i=0; while [ $i -lt 30 ]; do sleep 30 & i=$((i+1)); done"
    done = sh(script, code=None, change=limited(pids={"limit": 12}))
    assert b"can't fork" in done.stderr
    sh(script.replace("30 &", "1 &"), change=limited(pids={"limit": 40}))


def test_files_that_few_ask_for(sh: Callable[..., Any]) -> None:
    done = sh(
        "cd /sys/fs/cgroup; cat hugetlb.2MB.max hugetlb.2MB.rsvd.max memory.high cpu.max.burst cpu.max memory.low memory.oom.group",
        change=limited(
            hugepageLimits=[{"pageSize": "2MB", "limit": 4 * MIB}],
            memory={"limit": 50 * MIB, "reservation": 8 * MIB, "swap": 60 * MIB, "swappiness": 7},
            cpu={"quota": 30000, "burst": 10000, "period": 50000},
            unified={"memory.high": str(40 * MIB), "memory.oom.group": "1"},
        ),
    )
    assert done.stdout.decode().split("\n")[:-1] == [
        str(4 * MIB), str(4 * MIB), str(40 * MIB), "10000", "30000 50000", str(8 * MIB), "1",
    ]  # fmt: skip


def test_huge_pages_of_a_size_that_there_is_not(cli: Cli, bundle) -> None:
    where = bundle("/bin/true", change=limited(hugepageLimits=[{"pageSize": "64KB", "limit": 4 * MIB}]))
    (line,) = cli("create", "--bundle", str(where), "h", code=1).stderr.decode().splitlines()
    assert "hugetlb.64KB.max: no such file or directory" in line
    assert "linux.resources.hugepageLimits: the VM has pages of 2MB" in line


def test_a_file_that_the_guest_has_not_is_named(sh: Callable[..., Any]) -> None:
    done = sh("true", code=1, change=limited(unified={"memory.nonesuch": "1"}))
    assert b"write '1' to /sys/fs/cgroup/c1/memory.nonesuch: no such file or directory" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_shares_decide_between_two(cli: Cli, logged: Any) -> None:
    """1 : 4 on one CPU of the host gets at least 1 : 2 of the work done."""
    names = {"few": 256, "many": 1024}
    lines = {name: logged(name, BUSY, limited(cpu={"shares": shares, "cpus": "0"})) for name, shares in names.items()}
    eventually(lambda: all(found() for found in lines.values()), "both run")
    for said in (2, 3):
        time.sleep(2 * said)  # the measurement, and before it what comes with a start
        for name in names:
            cli("kill", name, "USR1")
        eventually(lambda: all(len(found()) == said for found in lines.values()), "both have told")  # noqa: B023
    for name in names:
        cli("delete", "--force", name)
    work = {name: int(found()[2]) - int(found()[1]) for name, found in lines.items()}
    assert work["many"] >= 2 * work["few"] > 0, work


def test_quota(cli: Cli, logged: Any, host: Any) -> None:
    """A fifth of a CPU in the guest; what QEMU does besides has a quarter of one more, at most."""
    script = "(while :; do :; done) & sleep 4; cat /sys/fs/cgroup/cpu.stat; sleep 1000"
    lines = logged("slow", script, limited(cpu={"quota": 20000, "period": 100000}))
    quota = host("slow", "cpu.cfs_quota_us", "cpu.max")
    assert quota.read_text().split()[0] == "45000"
    began, used = time.monotonic(), cpu_s(quota)  # the clock first: its time has room for what is used
    eventually(lambda: any("nr_throttled" in line for line in lines()), "four seconds in the guest")
    share = (cpu_s(quota) - used) / (time.monotonic() - began)
    throttled = next(int(line.split()[1]) for line in lines() if line.startswith("nr_throttled"))
    assert throttled > 0
    assert share < 0.55, share
    cli("delete", "--force", "slow")


def test_cpus_of_the_host(cli: Cli, logged: Any, host: Any) -> None:
    logged("pinned", "sleep 1000", limited(cpu={"cpus": "1", "mems": "0"}))
    file = host("pinned", "cpuset.cpus")
    assert file.read_text().strip() == "1"
    for process in members(file):
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            assert re.search(r"Cpus_allowed_list:\s*1\n", (task / "status").read_text())
    cli("delete", "--force", "pinned")


def _a_disk() -> str:
    disks = (Path(f"/sys/block/{name}") for name in sorted(os.listdir("/sys/block")))
    return next((disk / "dev").read_text().strip() for disk in disks if int((disk / "size").read_text()))


def test_throttles_and_weights_of_block_devices(cli: Cli, logged: Any, host: Any) -> None:
    device = _a_disk()
    major, minor = map(int, device.split(":"))
    rate = {"major": major, "minor": minor, "rate": 50 * MIB}
    logged("disk", "sleep 1000", limited(blockIO={"weight": 300, "throttleReadBpsDevice": [rate]}))
    throttle = host("disk", "blkio.throttle.read_bps_device", "io.max")
    assert f"{device} " in throttle.read_text()
    assert str(50 * MIB) in throttle.read_text()
    weight = host("disk", "blkio.weight", "blkio.bfq.weight", "io.bfq.weight", "io.weight")
    assert weight.read_text().split()[-1] in ("300", "2930")
    cli("delete", "--force", "disk")


REPORT = (
    "dd if=/dev/zero of=/dev/shm/some bs=1M count=3 2>/dev/null; trap 'cd /sys/fs/cgroup; echo $(cat memory.max pids.max cpu.max cpu.weight memory.low)' USR1; echo on; "
    "while sleep 0.1; do :; done"
)


@pytest.fixture
def told(cli: Cli, logged: Any) -> Iterator[Callable[[], str]]:
    """A container with limits that tells those that hold in its guest."""
    lines = logged("u", REPORT, limited(memory={"limit": 100 * MIB}, cpu={"shares": 512}, pids={"limit": 50}))
    eventually(lambda: lines() == ["on"], "it runs")

    def ask() -> str:
        before = len(lines())
        cli("kill", "u", "USR1")
        return str(eventually(lambda: lines()[before:], "it has told")[0])

    yield ask
    cli("delete", "--force", "u")


def test_update_both_ways(cli: Cli, told: Any, host: Any, record: Any) -> None:
    assert told() == f"{100 * MIB} 50 max 100000 20 0"
    cli("update", "--memory", "60m", "--memory-reservation", "10m", "--pids-limit", "-1", "--cpu-share", "1024", "u")
    assert told() == f"{60 * MIB} max max 100000 39 {10 * MIB}"
    cli("update", "--memory", "128m", "--cpu-quota", "30000", "--pids-limit", "9", "u")
    assert told() == f"{128 * MIB} 9 30000 100000 39 {10 * MIB}"
    shares = host("u", "cpu.shares", "cpu.weight").read_text().strip()
    assert shares in ("1024", "39")
    cli("update", "--resources", "-", "u", stdin=b'{"cpu": {"quota": -1}, "memory": {"limit": -1}, "devices": []}')
    assert told() == f"max 9 max 100000 39 {10 * MIB}"
    assert int(host("u", "memory.limit_in_bytes", "memory.max").read_text().replace("max", "9" * 18)) > 1 << 40
    assert record("u")["resources"]["cpu"]["shares"] == 1024


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--memory", "129m"], "room for at most 134217728 bytes (128 MiB)"),
        (["--cpu-quota", "150000"], "has 1 CPUs, so at most 100000 of a period of 100000"),
        (["--memory", "60m", "--cpuset-cpus", "999"], "cpuset.cpus: numerical result out of range"),
        (["--memory", "60m", "--memory-swap", "50m"], "memory.swap: 52428800 is less than memory.limit"),
        (["--cpu-rt-runtime", "1000"], "cpu.realtimeRuntime: not supported"),
        (["--cpu-share", "1"], "cpu.shares: expected a number from 2 to 262144, got 1"),
        (["--memory", "lots"], "invalid value for memory: invalid size: 'lots'"),
        (["--memory", "9" * 400], "invalid value for memory: expected a number up to 9223372036854775807, got 999"),
        (
            ["--memory", "1m"],
            "memory.limit: expected at least 2097152 bytes (2 MiB), which a small program needs, got 1048576",
        ),
        (["--resources", "/nonesuch"], "/nonesuch is missing"),
        (["--resources", "-"], f"memory limit {MEMORY_MIN}: the container uses"),
    ],
)
def test_update_all_or_nothing(cli: Cli, told: Any, host: Any, flags: list[str], words: str) -> None:
    before = told()
    shares = host("u", "cpu.shares", "cpu.weight").read_text()
    careful = json.dumps({"memory": {"limit": MEMORY_MIN, "checkBeforeUpdate": True}}).encode()
    failed = cli("update", "--cpu-share", "2048", *flags, "u", code=1, stdin=careful).stderr.decode()
    assert words in failed.replace(": is missing", " is missing")
    assert failed.count("\n") == 1
    assert "config.json" not in failed
    assert told() == before
    assert host("u", "cpu.shares", "cpu.weight").read_text() == shares


def test_update_in_every_state(cli: Cli, bundle: Any, told: Any) -> None:
    assert b"does not exist" in cli("update", "--pids-limit", "5", "nobody", code=1).stderr
    cli.create("c", bundle("/bin/cat", "/sys/fs/cgroup/pids.max"))
    cli("update", "--pids-limit", "5", "c")
    cli("start", "c")
    cli.wait_status("c", "stopped")
    assert b"container not running" in cli("update", "--pids-limit", "5", "c", code=1).stderr
    cli("delete", "c")
    cli("pause", "u")
    assert b"paused" in cli("update", "--pids-limit", "5", "u", code=1).stderr
    cli("resume", "u")
    cli("update", "--pids-limit", "5", "u")
    assert told().split()[1] == "5"


def test_memory_of_a_volume_is_the_host_s(cli: Cli, bundle: Any, ending: Any) -> None:
    """docs/cgroups.md: pages of a host's tmpfs are charged to the VM, and nothing but its end frees them."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as volume:

        def change(config: JsonDict) -> None:
            limited(memory={"limit": 50 * MIB})(config)
            config["mounts"].append({"destination": "/v", "type": "bind", "source": volume, "options": ["bind", "rw"]})

        cli.create("tmpfs", bundle("/bin/dd", "if=/dev/zero", "of=/v/f", "bs=1M", "count=300", change=change))
        cli("start", "tmpfs")
        ended = ending("tmpfs")
        assert (ended["reason"], ended["code"], ended["oom"]) == ("oom", "137", "1")
        assert sum(path.stat().st_size for path in Path(volume).iterdir()) < 250 * MIB
    cli("delete", "tmpfs")


def test_a_guest_that_hangs_does_not_hold_update_up(cli: Cli, logged: Any, host: Any) -> None:
    logged("hung", "sleep 1000", limited(cpu={"shares": 512}, memory={"limit": 50 * MIB}))
    shares = host("hung", "cpu.shares", "cpu.weight")
    before = shares.read_text()
    qemu = max(members(shares), key=lambda process: process.memory_info().rss)
    qemu.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    for memory in ("60m", "40m"):  # the host's side first, and last
        failed = cli("update", "--cpu-share", "1024", "--memory", memory, "hung", code=1)
        assert (
            b"the guest may still take the new limits when it runs again; repeat the update to be sure" in failed.stderr
        )
        assert shares.read_text() == before
    assert time.monotonic() - began < 60
    cli("delete", "--force", "hung")


DEVICES = {
    "full": ("c", 1, 7),
    "fuse": ("c", 10, 229),
    "tun": ("c", 10, 200),
    "hpet": ("c", 10, 228),
}
ALL, NONE = {"allow": True, "access": "rwm"}, {"allow": False, "access": "rwm"}
RULES: dict[str, list[JsonDict]] = {
    "nothing said": [],
    "all denied": [NONE],
    "all allowed": [NONE, ALL],
    "one allowed": [NONE, {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"}],
    "to write only": [NONE, {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "w"}],
    "one denied": [ALL, {"allow": False, "type": "c", "major": 10, "minor": 229, "access": "rwm"}],
    "blocks": [NONE, {"allow": True, "type": "b", "access": "r"}],
    "a major": [NONE, {"allow": True, "type": "c", "major": 10, "access": "rm"}],
}


def _a_disk_that_opens() -> tuple[str, int, int]:
    """A block device that this host lets us open at all, so that a refusal is the container's."""
    for name in sorted(os.listdir("/sys/block")):
        with suppress(OSError):
            os.close(os.open(f"/dev/{name}", os.O_RDONLY))
            number = os.stat(f"/dev/{name}").st_rdev
            return "b", os.major(number), os.minor(number)
    return "b", 43, 7  # nobody's: ENXIO


def _opened(container: str, rules: list[JsonDict], rootfs: Path, directory: Path) -> bytes:
    """What a root with CAP_MKNOD is denied, device by device: made, opened to be read."""
    directory.mkdir()
    numbers = {**DEVICES, "disk": _a_disk_that_opens()}
    script = "".join(
        f"mknod /tmp/{name} {kind} {a} {b} 2>/dev/null || echo {name} not made;"
        f"(: </tmp/{name}) 2>&1 | grep -q 'not permitted' && echo {name} denied;"
        for name, (kind, a, b) in numbers.items()
    )
    runtime = runtime_of(container, rootfs, directory)
    with bundled(runtime, "devices", ["/bin/sh", "-c", script + "exit 0"], limited(devices=rules)) as where:
        done = subprocess.run(runtime.argv("devices", where), capture_output=True, timeout=DEADLINE_S, check=False)
        runtime.delete("devices")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_devices_are_denied_as_by_runc(rules: str, rootfs: Path, tmp_path: Path, template: str) -> None:
    del template
    ours = _opened("9p", RULES[rules], rootfs, tmp_path / "ours")
    theirs = _opened(RUNC, RULES[rules], rootfs, tmp_path / "theirs")
    assert ours == theirs
    assert (ours == b"") == (rules == "all allowed")


@pytest.mark.parametrize("container", ["9p", RUNC])
def test_numbers_that_ask_for_nothing_are_taken_as_by_runc(
    container: str, rootfs: Path, tmp_path: Path, template: str
) -> None:
    del template
    (tmp_path / "there").mkdir()
    runtime = runtime_of(container, rootfs, tmp_path / "there")
    nothing = {"pids": {}, "memory": {"limit": 0, "swap": -1}, "cpu": {"quota": -2, "shares": 0}}
    odd = [nothing, {"pids": {"limit": -2}}, *({"memory": {name: -2}} for name in ("limit", "reservation", "swap"))]
    codes = []
    for number, asked in enumerate(odd):
        with bundled(runtime, f"odd{number}", ["/bin/true"], limited(**asked)) as where:
            done = subprocess.run(
                runtime.argv(f"odd{number}", where), capture_output=True, timeout=DEADLINE_S, check=False
            )
            runtime.delete(f"odd{number}")
        codes.append(done.returncode)
    assert codes == [0, 0, 1, 1, 1]
