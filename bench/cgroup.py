"""What a container's cgroups cost at its start: made on the spot against leased from a pool, on v1 and v2.

usage: cgroup.py [--quick]
Writes build/bench/cgroup.json and prints a table. Places: *v1 here* and *v2 here* are this host's own hierarchies; *v2 in a VM* is a tree with all
controllers, in an emulated VM of ours over this host's root (tests/host_vm.py): its milliseconds are those of an emulated processor, only its
shares can be compared with the others.

A start is: lease (the pool's record), make (mkdir, or v1's rename), configure (limits), attach (v1: a migration a hierarchy; v2: to be born
inside), each by the product's own code in a process of its own, but for attach, which a C program does as the launcher does it. Of so many at once,
each has a processor only now and then: p50 and p99 have the waiting in them. Everything is removed at the end.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import cgroup_stages
from cgroup_stages import STAGES

from rundctl.host import cgroupfs

AT_ONCE = (1, 50, 200)
EXISTING = (0, 500, 2000)
POPULATED = (500, 2000)
WAYS = ("spot", "pool")
STARTS = 100  # of each row, in rounds of so many at once
PAPER = (
    "with a pool 94 % less: 0.09 ms on one thread, 0.14 on 200; load balancing 7.6 % of the host's CPU at high density"
)


class Plan:
    """How much is measured: the whole, a part inside a VM, or almost nothing."""

    def __init__(
        self,
        at_once: tuple[int, ...],
        existing: tuple[int, ...],
        populated: tuple[int, ...],
        starts: int,
        seconds: float,
        hz: int,
    ) -> None:
        self.at_once = at_once
        self.existing = existing
        self.populated = populated
        self.starts = starts
        self.seconds = seconds
        self.hz = hz


WHOLE = Plan(AT_ONCE, EXISTING, POPULATED, STARTS, 5.0, 10)
# Emulated: a tenth of the wake-ups, and no 200 at once, which would measure how two emulated processors start 200 Pythons.
IN_VM = Plan((1, 50), (0, 500), (500,), 20, 5.0, 1)
QUICK = Plan((1, 4), (0, 8), (4,), 4, 0.3, 10)


def machine() -> dict[str, Any]:
    """Where, when, beside what."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} x {platform.machine()}, Linux {platform.release()}",
        "load_before": round(os.getloadavg()[0], 2),
        "command": " ".join(["bench/cgroup.py", *sys.argv[1:]]),
    }


def state_directory() -> str:
    """Where the pool's records are: a tmpfs, as /run is wherever there is an init. This host's, or else one that is surely there."""
    done = subprocess.run(["stat", "--file-system", "--format=%T", "/run"], capture_output=True, text=True, check=True)
    return "/run" if done.stdout.strip() == "tmpfs" else "/dev/shm"  # noqa: S108 (a directory of ours in it)


def here(plan: Plan, scratch: Path) -> dict[str, Any]:
    """Every tree of this host: the v1 hierarchies together, and v2 alone."""
    trees = cgroupfs.hierarchies()
    places = {"v1": [tree for tree in trees if not tree.is_v2], "v2": [tree for tree in trees if tree.is_v2]}
    return {name: place(found, plan, scratch) for name, found in places.items() if found}


def place(hierarchies: list[Any], plan: Plan, scratch: Path) -> dict[str, Any]:
    """All figures of some hierarchies."""
    bench = cgroup_stages.Bench(hierarchies, scratch)
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "hierarchies": [
            ",".join(sorted(each.controllers)) or "v2: " + " ".join(each.available("")) for each in hierarchies
        ],
        "starts": rows,
    }
    with bench:
        for existing in plan.existing:
            bench.have(existing)
            for way in WAYS:
                rows += (bench.measure(way, count, plan.starts) | {"existing": existing} for count in plan.at_once)
        bench.have(0)
        result["lease_only"] = bench.lease_only(plan.starts)
        result["attach_after_quiet_ms"] = bench.attach_after_quiet(5 if plan.starts > 10 else 2)
        result["populated"] = [bench.populated(count, plan.seconds, plan.hz) for count in plan.populated]
    return result


def in_vm(plan_name: str, scratch: Path) -> dict[str, Any]:
    """The same in a VM, where v2 has all controllers."""
    import host_vm

    results = scratch / "results"
    results.mkdir()
    path = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)
    command = [sys.executable, str(Path(__file__).resolve()), "--inside", plan_name]
    code, printed = host_vm.run(command, results, environment={"PYTHONPATH": path}, memory_mib=2048, timeout_s=1800)
    if code:
        raise SystemExit(f"the bench in the VM ended with {code}:\n{printed[-3000:]}")
    return dict(json.loads((results / "cgroup.json").read_text())["places"])


def inside(plan_name: str) -> None:
    """In the VM: measure, and leave the figures where the host finds them."""
    import host_vm

    with tempfile.TemporaryDirectory(dir="/run") as scratch:
        found = here({"in_vm": IN_VM, "quick": QUICK}[plan_name], Path(scratch))
    (Path(host_vm.RESULTS) / "cgroup.json").write_text(json.dumps({"places": found}))


def shares(row: dict[str, Any]) -> dict[str, float]:
    """What part of all the time of a start each stage is, percent."""
    total = sum(row["mean_ms"].values()) or 1.0
    return {stage: round(100 * row["mean_ms"][stage] / total, 1) for stage in STAGES}


def conclude(places: dict[str, Any]) -> dict[str, Any]:
    """The questions that the figures are for."""
    found: dict[str, Any] = {"paper": PAPER}
    for name, each in places.items():
        most = max(row["at_once"] for row in each["starts"])
        spot, pool = (
            next(row for row in each["starts"] if (row["way"], row["at_once"], row["existing"]) == (way, most, 0))
            for way in WAYS
        )
        before, after = (sum(row["mean_ms"].values()) for row in (spot, pool))
        found[name] = {
            "at_once": most,
            "spot_ms": round(before, 3),
            "pool_ms": round(after, 3),
            "less_percent": round(100 * (1 - after / before), 1),
            "without_attach_less_percent": round(
                100 * (1 - (after - pool["mean_ms"]["attach"]) / (before - spot["mean_ms"]["attach"])), 1
            ),
            "shares_spot_percent": shares(spot),
            "shares_pool_percent": shares(pool),
            "lease_median_ms": each["lease_only"]["p50_ms"],
            "record_median_ms": each["lease_only"]["record_p50_ms"],
        }
    return found


def show(result: dict[str, Any]) -> None:
    """The table."""
    for name, each in result["places"].items():
        print(f"\n{name}: {'; '.join(each['hierarchies'])}")
        print(
            f"{'way':5}{'existing':>9}{'at once':>8}"
            + "".join(f"{stage + ' p50':>15}{'p99':>8}" for stage in (*STAGES, "start"))
            + f"{'all, ms':>10}"
        )
        for row in each["starts"]:
            cells = "".join(f"{row['p50_ms'][stage]:15.3f}{row['p99_ms'][stage]:8.2f}" for stage in (*STAGES, "start"))
            print(f"{row['way']:5}{row['existing']:9}{row['at_once']:8}{cells}{row['all_ms']:10.1f}")
        print(f"lease alone: {each['lease_only']}; attach after a quiet second: {each['attach_after_quiet_ms']} ms")
        for row in each["populated"]:
            print(f"populated: {row}")
    print()
    for name, words in result["conclusion"].items():
        print(f"{name}: {words}")


def main() -> None:
    """Measure, save, print."""
    if "--inside" in sys.argv:
        inside(sys.argv[-1])
        return
    quick = "--quick" in sys.argv
    result = machine()
    with tempfile.TemporaryDirectory(dir=state_directory()) as scratch:
        places = here(QUICK if quick else WHOLE, Path(scratch))
        places = {f"{name} here": figures for name, figures in places.items()}
        places["v2 in a VM"] = in_vm("quick" if quick else "in_vm", Path(scratch))["v2"]
    result |= {
        "state_in": state_directory(),
        "load_after": round(os.getloadavg()[0], 2),
        "places": places,
        "conclusion": conclude(places),
    }
    target = Path("build/bench/cgroup.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n")
    show(result)
    print(target)


if __name__ == "__main__":
    main()
