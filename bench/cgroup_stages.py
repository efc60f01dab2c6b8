"""One start's cgroup work, by stages, many at once: what bench/cgroup.py measures."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rundctl.engine.cgroups import cgroup_pool, kinds, upkeep
from rundctl.engine.cgroups.ownership import Pool
from rundctl.host import cgroup_settings, cgroupfs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rundctl.engine.cgroups.lease import Lease
    from rundctl.host.cgroupfs import Hierarchy

STAGES = ("lease", "make", "configure", "attach")
_SOURCE = Path(__file__).with_name("cgroup_probe.c")
_QUIET_S = 1.0


def limits(hierarchies: Sequence[Hierarchy]) -> cgroup_settings.Limits:
    """What a usual container asks for; nothing where there is no such controller."""
    asked = cgroup_settings.Limits()
    if not any("memory" in (each.available("") if each.is_v2 else each.controllers) for each in hierarchies):
        return asked
    asked.memory = 256 << 20
    asked.shares = 512
    asked.quota, asked.period = 50_000, 100_000
    return asked


def percentile(values: Sequence[float], part: float) -> float:
    """The value that this part of all are not above; nearest rank."""
    return sorted(values)[max(0, -(-len(values) * part // 1).__int__() - 1)]


class Attacher:
    """A process that waits until it is told where to go; the launcher's part, in C."""

    def __init__(self, probe: Path) -> None:
        self._process = subprocess.Popen([probe, "attach"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def attach(self, paths: Sequence[str]) -> float:
        """Let it join; how long the kernel took, milliseconds."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(" ".join(paths).encode() + b"\n")
        self._process.stdin.flush()
        join_ns, clone_ns = self._process.stdout.readline().split()
        return (int(join_ns) + int(clone_ns)) / 1e6

    def end(self) -> None:
        """Leave the cgroups."""
        self._process.communicate()


def join_paths(lease: Lease) -> list[str]:
    """What `Attacher` is told."""
    return [place.directory if place.hierarchy.is_v2 else f"{place.directory}/cgroup.procs" for place in lease.places]


class Bench:
    """Some hierarchies with a parent cgroup of ours in each, which is gone after a ``with`` block."""

    def __init__(self, hierarchies: list[Hierarchy], scratch: Path) -> None:
        self.hierarchies = hierarchies
        self.parent = f"/rundctl-bench-{os.getpid()}"
        self._state = str(scratch / f"pool-{len(hierarchies)}")
        self._scratch = scratch
        self._existing = 0
        self._probe = scratch / "cgroup_probe"
        if not self._probe.exists():
            subprocess.run(
                ["gcc", "-static", "-O1", "-Wall", "-Wextra", "-Werror", _SOURCE, "-o", self._probe], check=True
            )

    def __enter__(self) -> Self:
        for hierarchy in self.hierarchies:
            cgroupfs.make(hierarchy, f"{self.parent}/starts")
            cgroupfs.make(hierarchy, f"{self.parent}/existing")
            cgroupfs.make(hierarchy, f"{self.parent}/warm")
        return self

    def __exit__(self, *_: object) -> None:
        for hierarchy in self.hierarchies:
            for directory, _, _ in os.walk(hierarchy.directory + self.parent, topdown=False):
                path = directory.removeprefix(hierarchy.directory)
                cgroupfs.remove(hierarchy, path, 20.0)

    def have(self, count: int) -> None:
        """Have so many other cgroups in every hierarchy."""
        for hierarchy in self.hierarchies:
            for number in range(self._existing, count):
                cgroupfs.make(hierarchy, f"{self.parent}/existing/{number}")
            for number in range(count, self._existing):
                cgroupfs.remove(hierarchy, f"{self.parent}/existing/{number}", 20.0)
        self._existing = count

    def lease(self, name: str, directory: str) -> Lease:
        """As ``create`` names it: a slot if there is a pool."""
        return cgroup_pool.lease(self.hierarchies, f"{self.parent}/starts/{name}", directory, self._state)

    def _fill(self, size: int) -> None:
        upkeep.fill(self.hierarchies, f"{self.parent}/starts", size, lambda _: None, self._state)

    def _drain(self) -> None:
        upkeep.drain(self.hierarchies, f"{self.parent}/starts", lambda _: None, self._state)

    def measure(self, way: str, at_once: int, starts: int) -> dict[str, Any]:
        """So many starts at once, again and again until there were enough."""
        rows: list[dict[str, float]] = []
        walls = []
        if way == "pool":
            self._fill(at_once)
        try:
            while len(rows) < starts:
                found, wall_ms = self._round(at_once)
                rows += found
                walls.append(wall_ms)
                if way == "pool":
                    self._fill(at_once)
        finally:
            if way == "pool":
                self._drain()
        assert all(row["pooled"] == (way == "pool") for row in rows), f"{way}: not what was to be measured"
        for row in rows:
            row["start"] = sum(row[stage] for stage in STAGES)
        columns = {stage: [row[stage] for row in rows] for stage in (*STAGES, "start")}
        return {
            "way": way,
            "at_once": at_once,
            "count": len(rows),
            "p50_ms": {stage: round(statistics.median(values), 4) for stage, values in columns.items()},
            "p99_ms": {stage: round(percentile(values, 0.99), 4) for stage, values in columns.items()},
            "mean_ms": {stage: round(statistics.fmean(columns[stage]), 4) for stage in STAGES},
            "all_ms": round(statistics.median(walls), 2),
        }

    def _round(self, at_once: int) -> tuple[list[dict[str, float]], float]:
        """Workers that are let go together; their figures, and milliseconds from the first's start to the last's end.

        None gives anything back before all have started: that would be measured with the others' starts.
        """
        ready, told = os.pipe()
        go, starter = os.pipe()
        over, ender = os.pipe()
        reports, reporter = os.pipe()
        pids = []
        for number in range(at_once):
            pid = os.fork()
            if pid == 0:
                try:
                    os.close(starter)
                    os.close(ender)
                    self._work(number, told, (go, over), reporter)
                    os._exit(0)
                finally:
                    traceback.print_exc()
                    os._exit(1)
            pids.append(pid)
        os.close(told)
        os.close(reporter)
        for _ in pids:
            assert os.read(ready, 1), "a worker died"
        os.close(starter)  # all at once
        with os.fdopen(reports) as file:
            lines = [json.loads(line) for line in file]
        os.close(ender)
        failed = [pid for pid in pids if os.waitpid(pid, 0)[1]]
        for fd in (ready, go, over):
            os.close(fd)
        assert not failed, f"{len(failed)} workers failed"
        wall_ms = (max(line.pop("end") for line in lines) - min(line.pop("begin") for line in lines)) * 1e3
        return lines, wall_ms

    def _work(self, number: int, told: int, gates: tuple[int, int], reporter: int) -> None:
        """One start, in a process of its own: it dies with its lease given back. ``gates``: what ends when it may start, and when it may give back."""
        attacher = Attacher(self._probe)
        directory = str(self._scratch / f"container-{number}")
        asked = limits(self.hierarchies)
        self._warm_up(number, asked)
        os.write(told, b"1")
        os.read(gates[0], 1)
        times = [time.perf_counter()]
        lease = self.lease(f"c{number}", directory)
        times.append(time.perf_counter())
        lease.make(lambda _: None)
        times.append(time.perf_counter())
        cgroup_settings.apply([place.directory for place in lease.places], asked)
        times.append(time.perf_counter())
        row = {stage: (times[at + 1] - times[at]) * 1e3 for at, stage in enumerate(STAGES[:3])}
        row["attach"] = attacher.attach(join_paths(lease))
        row |= {"pooled": lease.kind == "pool", "begin": times[0], "end": time.perf_counter()}
        os.write(reporter, json.dumps(row).encode() + b"\n")
        os.close(reporter)  # so that whoever reads hears of the end of all, should one die
        os.read(gates[1], 1)
        attacher.end()
        kinds.recorded(lease.facts()).give_back()

    def _warm_up(self, number: int, asked: cgroup_settings.Limits) -> None:
        """The same once before, unmeasured, where no pool is: a process' first touch of its pages, and an emulator's of code, are no cgroup's cost."""
        lease = cgroup_pool.lease(self.hierarchies, f"{self.parent}/warm/c{number}", "/nowhere", self._state)
        lease.make(lambda _: None)
        cgroup_settings.apply([place.directory for place in lease.places], asked)
        kinds.recorded(lease.facts()).give_back()

    def lease_only(self, count: int) -> dict[str, float]:
        """A lease when nobody else is there, and of it the record: one symlink made, one hint removed. What the pool's own locking costs."""
        self._fill(count)
        pool = Pool.of(f"{self.parent}/starts", self._state)
        leases, times, records = [], [], []
        try:
            for number in range(count):
                began = time.perf_counter()
                leases.append(self.lease(f"l{number}", str(self._scratch / f"l{number}")))
                times.append((time.perf_counter() - began) * 1e3)
            assert all(lease.kind == "pool" for lease in leases)
            for lease in leases:
                lease.let_go()
            for number in pool.free():
                began = time.perf_counter()
                assert pool.lease(number, str(self._scratch / f"l{number}"))
                assert pool.unhint(number)
                records.append((time.perf_counter() - began) * 1e3)
                pool.hint(number)
                pool.drop(number)
        finally:
            self._drain()
        return {
            "p50_ms": round(statistics.median(times), 4),
            "p99_ms": round(percentile(times, 0.99), 4),
            "record_p50_ms": round(statistics.median(records), 4),
            "record_p99_ms": round(percentile(records, 0.99), 4),
            "slots": count,
        }

    def attach_after_quiet(self, count: int) -> float:
        """Median of attaching after a second in which nobody did: the kernel must first wait for a grace period (RCU)."""
        times = []
        for number in range(count):
            lease = cgroup_pool.lease(self.hierarchies, f"{self.parent}/starts/q{number}")
            lease.make(lambda _: None)
            attacher = Attacher(self._probe)
            time.sleep(_QUIET_S)
            times.append(attacher.attach(join_paths(lease)))
            attacher.end()
            kinds.recorded(lease.facts()).give_back()
        return round(statistics.median(times), 3)

    def populated(self, count: int, seconds: float, hz: int) -> dict[str, Any]:
        """CPU that processes take that sleep, or wake up and sleep again: all in one cgroup, and each in its own."""
        self.have(count)
        found: dict[str, Any] = {"processes": count, "wakeups_a_second": hz, "seconds": seconds}
        for where in ("one", "own"):
            names = [f"{self.parent}/existing/{number if where == 'own' else 0}" for number in range(count)]
            for kind, rate in (("asleep", 0), ("waking", hz)):
                found[f"{kind}_{where}"] = self._wake(names, seconds, rate)
        self.have(0)
        return found

    def _wake(self, paths: list[str], seconds: float, hz: int) -> dict[str, float]:
        """Percent of one CPU: the processes' own, and all that the machine was not idle (which counts others, too)."""
        lines = (" ".join(f"{each.directory}{path}/cgroup.procs" for each in self.hierarchies) + "\n" for path in paths)
        with subprocess.Popen(
            [self._probe, "wake", str(seconds), str(hz)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as probe:
            assert probe.stdin
            assert probe.stdout
            probe.stdin.writelines(lines)
            probe.stdin.close()
            assert probe.stdout.readline() == "ready\n"
            busy, began = _busy_s(), time.monotonic()
            own_ns = int(probe.stdout.readline())
            elapsed = time.monotonic() - began
            busy = _busy_s() - busy
        return {"own": round(own_ns / 1e7 / elapsed, 2), "machine": round(100 * busy / elapsed, 1)}


def _busy_s() -> float:
    """CPU seconds of the whole machine that were not idle, since its boot (proc_stat(5))."""
    user, nice, system, _idle, _wait, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
