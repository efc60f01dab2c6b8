"""What a clone of the template costs: memory by part, idle CPU, time and CPU until its agent answers, stages of ``create``.

usage: template.py [COUNTS [STARTS [LOWER]]]     COUNTS: numbers of containers at once, as 1,10,50,100; LOWER: erofs or 9p
Writes build/bench/template.json. "dense": emulated, with the smallest buffer of translated code that a sleeping container can do with.
Every container is a busybox ``sleep`` on a root file system without volumes, in a VM of the settings' size.
"""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

sys.path.insert(0, str(Path(__file__).resolve().parent))
import smaps
from busybox import RUNDCTL, make_bundle

from rundctl.engine import settings
from rundctl.engine.rootfs import hybrid_rootfs
from rundctl.engine.template import inputs, kernel_template, store
from rundctl.engine.template.inputs import Request
from rundctl.guest import wire
from rundctl.host import memo, native, process
from rundctl.oci import bundle as bundles
from rundctl.vmm import qemu
from rundctl.vmm.qmp import Qmp

if TYPE_CHECKING:
    from rundctl.engine.rootfs.transport import Rootfs

QUIET_S = 20.0  # before anything of an idle clone is measured: its start has timers of its own
IDLE_S = 20.0
STAGED_RUNS = 7
COLD_RUNS = 3
DENSE_MIB = (
    6  # of translated code: what emulated containers that sleep can do with, and none that works (docs/performance.md)
)
_TIMEOUT_S = 60.0


class Fleet:
    """Running containers, deleted at the end of a ``with`` block."""

    def __init__(self, scratch: Path, lower: str) -> None:
        self._root = scratch / "root"
        self.bundle = make_bundle(scratch / "bundle", "/bin/sleep", "100000", lower=lower, immutable="bench")
        self._errors = scratch / "stderr"
        self._config = scratch / "config.toml"
        self._environment = dict(os.environ)
        self._ids: list[str] = []
        self.machines: list[tuple[int, int]] = []  # pids of shim and QEMU

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.empty()

    def empty(self) -> None:
        """Delete all."""
        for container in list(self._ids):
            self.drop(container)
        self.machines.clear()

    def configure(self, host: settings.Settings, **changes: int) -> None:
        """Settings for what is created from now on: the host's, with changes."""
        chosen = {name: getattr(host, name) for name in host.__slots__} | changes
        self._config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in chosen.items()))
        self._environment["RUNDCTL_CONFIG"] = str(self._config)

    def grow(self, count: int) -> None:
        """Create and start containers until there are so many."""
        while len(self.machines) < count:
            container = f"bench{len(self._ids)}"
            self.create(container)
            self._call("start", container)
            shim = json.loads(self._call("state", container))["pid"]
            (child,) = Path(f"/proc/{shim}/task/{shim}/children").read_text().split()
            self.machines.append((shim, int(child)))

    def create(self, container: str, template: str = "on") -> dict[str, float]:
        """Create one; the stages of it, milliseconds."""
        self._ids.append(container)
        self._call("create", "--timings", "--template", template, "--bundle", str(self.bundle), container)
        return {stage: float(ms) for stage, ms in re.findall(r"(\w+)=([\d.]+)", self._errors.read_text())}

    def drop(self, container: str) -> None:
        """Delete one."""
        self._ids.remove(container)
        self._call("delete", "--force", container)

    def _call(self, *arguments: str) -> str:
        # The container inherits create's stderr and keeps it: a pipe would never end.
        with self._errors.open("w") as errors, (self._root.parent / "stdout").open("w+") as output:
            subprocess.run(
                [RUNDCTL, "--root", str(self._root), *arguments],
                check=True, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=self._environment,
            )  # fmt: skip
            output.seek(0)
            return output.read()


def memory_of(fleet: Fleet, memory: str) -> dict[str, float]:
    """Mean PSS of a container (shim and QEMU) by part, MiB."""
    total = dict.fromkeys((name for name, _ in smaps.PARTS), 0)
    for shim, machine in fleet.machines:
        for name, kib in smaps.breakdown_kib(machine, memory).items():
            total[name] += kib
        total["shim"] += smaps.pss_kib(shim)
    mean = {name: round(kib / 1024 / len(fleet.machines), 2) for name, kib in total.items()}
    mean["PSS"] = round(sum(total.values()) / 1024 / len(fleet.machines), 2)
    mean["PSS without translated code"] = round(mean["PSS"] - mean["translated code"], 2)
    return mean


def cpu_s(fleet: Fleet) -> float:
    """CPU time of all containers' threads so far, seconds (nanoseconds of schedstat, Documentation/scheduler/sched-stats.rst)."""
    total = 0
    for pid in (pid for machine in fleet.machines for pid in machine):
        for task in Path(f"/proc/{pid}/task").iterdir():
            try:
                total += int((task / "schedstat").read_text().split()[0])
            except OSError:
                continue  # a worker thread that ended meanwhile
    return total / 1e9


def idle_percent(fleet: Fleet) -> float:
    """CPU of all containers together while they do nothing, percent of one core."""
    time.sleep(QUIET_S)
    before, started = cpu_s(fleet), time.monotonic()
    time.sleep(IDLE_S)
    return round(100 * (cpu_s(fleet) - before) / (time.monotonic() - started), 2)


def first_answer(template: Any, rootfs: Rootfs) -> tuple[float, float]:
    """Spawn a clone, without a shim, until its agent has taken its identity: wall-clock and CPU milliseconds."""
    with ExitStack() as opened:

        def held(fd: int) -> int:
            opened.callback(os.close, fd)
            return fd

        agent, agent_far = (opened.enter_context(end) for end in socket.socketpair())
        monitor, monitor_far = (opened.enter_context(end) for end in socket.socketpair())
        state = held(os.open(template.state, os.O_RDONLY | os.O_CLOEXEC))
        source = rootfs.open(opened)
        wiring = qemu.Wiring(
            agent=agent_far.fileno(), qmp=monitor_far.fileno(), disk=held(hybrid_rootfs.open_private(rootfs, template)),
            rootfs=-1 if rootfs.device_mib else source, image=source if rootfs.device_mib else -1,
            empty=template.empty, memory_path=template.memory, translations_mib=settings.load().translations_mib,
        )  # fmt: skip
        argv, keep = qemu.clone_argv(template.shape, wiring, state)
        null = held(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        channel = wire.Channel(agent)
        channel.hello(wire.ROLE_SHIM)
        started = time.perf_counter()
        pid = process.spawn(argv, keep, (null, null, null))
        try:
            identity = struct.pack("<Q", time.time_ns()) + os.urandom(wire.ENTROPY_SIZE) + b"bench"
            tag = channel.post(wire.IDENTITY, identity)
            Qmp(monitor).restore(qemu.state_uri(template.shape, state))
            result = channel.wait(tag, _TIMEOUT_S)
            wall_ms = (time.perf_counter() - started) * 1e3
            assert result.error == 0, result.describe()
        finally:
            os.kill(pid, 9)
            usage = os.wait4(pid, 0)[2]
    return wall_ms, (usage.ru_utime + usage.ru_stime) * 1e3


def answers(template: Any, rootfs: Rootfs, count: int) -> dict[str, float]:
    """Medians and the 90th percentile of `first_answer`."""
    first_answer(template, rootfs)
    walls, cpus = zip(*(first_answer(template, rootfs) for _ in range(count)), strict=True)
    return {
        "starts": count,
        "median_ms": round(statistics.median(walls), 1),
        "min_ms": round(min(walls), 1),
        "p90_ms": round(statistics.quantiles(walls, n=10)[-1], 1),
        "cpu_median_ms": round(statistics.median(cpus), 1),
        "cpu_min_ms": round(min(cpus), 1),
    }


def stages(fleet: Fleet, template: str, runs: int) -> dict[str, float]:
    """Medians of the stages of ``create``, and their sum, milliseconds."""
    rows = []
    for number in range(runs):
        name = f"stages-{template}-{number}"
        rows.append(fleet.create(name, template))
        fleet.drop(name)
    medians = {stage: round(statistics.median(row[stage] for row in rows), 1) for stage in rows[0]}
    return {
        **medians,
        "all": round(statistics.median(sum(v for k, v in row.items() if k != "total") for row in rows), 1),
    }


def measure(counts: list[int], starts: int, transport: str) -> dict[str, Any]:
    """Everything, in the order that disturbs it least: the machine fills last."""
    host = settings.load()
    with tempfile.TemporaryDirectory() as scratch, Fleet(Path(scratch), transport) as fleet, ExitStack() as undo:
        bundle = bundles.load(str(fleet.bundle))
        known = memo.of_home(host.home)
        rootfs = hybrid_rootfs.choose(undo, bundle, host, known, host.memory_mib, lambda: inputs.able(host, known))
        return _measure(fleet, host, rootfs, counts, starts)


def _measure(fleet: Fleet, host: settings.Settings, rootfs: Rootfs, counts: list[int], starts: int) -> dict[str, Any]:
    """The same, with an empty fleet."""
    request = Request(root_device=rootfs.device, root_mib=rootfs.device_mib)
    template = kernel_template.ensure(host, memo.of_home(host.home), print, request)
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} x {platform.machine()}, Linux {platform.release()}",
        "load_before": os.getloadavg()[0],
        "command": " ".join(["bench/template.py", *sys.argv[1:]]),
        "qemu": ".".join(map(str, template.shape.qemu_version)),
        "accelerator": template.shape.accelerator.value,
        "kernel": template.manifest["kernel"],
        "memory_mib": template.shape.memory_mib,
        "lower": f"{rootfs.transport} ({rootfs.device})",
        "shim": native.program("shim"),
        "template": {
            "build_s": template.manifest["build_s"],
            "mib_on_disk": round(
                sum(os.stat(f"{template.directory}/{name}").st_blocks for name in store.FILES) / 2048, 1
            ),
        },
        "memory": {},
    }
    result["answer"] = answers(template, rootfs, starts)
    result["create"] = {"template": stages(fleet, "on", STAGED_RUNS), "cold": stages(fleet, "off", COLD_RUNS)}
    for count in counts:
        fleet.grow(count)
        time.sleep(2)
        result["memory"][count] = memory_of(fleet, template.memory)
    result["idle_percent_of_a_core"] = {counts[-1]: idle_percent(fleet)}
    if result["accelerator"] == "tcg":
        fleet.empty()
        fleet.configure(host, translations_mib=DENSE_MIB)
        fleet.grow(counts[-1])
        time.sleep(2)
        result["memory"][f"{counts[-1]} dense"] = memory_of(fleet, template.memory)
    one, many = result["memory"][counts[0]], result["memory"][counts[-1]]
    result["ratios"] = {
        "cold / template": round(result["create"]["cold"]["all"] / result["create"]["template"]["all"], 2),
        f"memory of {counts[-1]} / {counts[-1]} x one": round(many["PSS"] / one["PSS"], 3),
    }
    return result


def show(result: dict[str, Any]) -> None:
    """The table."""
    columns = list(result["memory"])
    print(f"{'MiB of PSS, each of':32}" + "".join(f"{count:>10}" for count in columns))
    for name in result["memory"][columns[0]]:
        print(f"{name:32}" + "".join(f"{result['memory'][count][name]:10.2f}" for count in columns))
    for count, percent in result["idle_percent_of_a_core"].items():
        print(f"{count} idle clones: {percent} % of a core")
    for name in ("answer", "template", "ratios"):
        print(f"{name}: {result[name]}")
    for kind, row in result["create"].items():
        print(f"create ({kind}): {row}")


def main() -> None:
    """Measure, save, print."""
    counts = [int(word) for word in sys.argv[1].split(",")] if len(sys.argv) > 1 else [1, 10, 50, 100]
    starts = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    result = measure(counts, starts, sys.argv[3] if len(sys.argv) > 3 else "erofs")
    target = Path("build/bench/template.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n")
    show(result)
    print(target)


main()
