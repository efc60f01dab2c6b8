"""What a container costs where KVM works, in instructions: by stage and side, beside runc, the same in every run.

usage: kvm.py            all of it: build/bench/kvm.json, a table, build/bench/kvm.svg
       kvm.py --record   and these become the figures of record: bench/kvm.json, docs/kvm.svg, the table in docs/performance.md
       kvm.py --native  of the figures of record the milliseconds alone: on a machine that is not busy
       kvm.py --check    the short form, compared with the figures of record: 1 if one has grown, 77 if they cannot be compared here
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import kvm_figures
import kvm_machine
import kvm_plot
from busybox import RUNDCTL, make_bundle

from rundctl.engine import settings
from rundctl.errors import RundctlError

CHECKOUT = Path(__file__).resolve().parents[1]
RECORD = CHECKOUT / "bench/kvm.json"
PICTURE = CHECKOUT / "docs/kvm.svg"
DOCUMENT = CHECKOUT / "docs/performance.md"
INCOMPARABLE = 77
_FULL = (5, 3, 1)  # calls undisturbed, sampled, traced
_SHORT = (3, 0, 1)
_RUNS = 15
_TIMES = 30


def measure(plain: int, sampled: int, traced: int) -> dict[str, Any]:
    """One machine's figures, and what decides them."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "environment": kvm_machine.environment(),
        "calls": {"undisturbed": plain, "sampled": sampled, "traced": traced},
        **kvm_figures.figures(kvm_machine.reports(plain, sampled, traced)),
    }


def native() -> dict[str, Any]:
    """The same on this host, in milliseconds: emulated starts, and what has no guest, which tells how many instructions a millisecond has."""
    with tempfile.TemporaryDirectory() as scratch:
        bundles = {name: make_bundle(Path(scratch) / name, *words) for name, words in kvm_machine.BUNDLES.items()}
        rundctl = [RUNDCTL, "--root", f"{scratch}/root"]
        load = os.getloadavg()[0]
        runs = [
            _staged([*rundctl, "run", "--timings", "--bundle", str(bundles["true"]), f"run{n}"]) for n in range(_RUNS)
        ]
        _quietly([*rundctl, "create", "--bundle", str(bundles["sleep"]), "state"])
        try:
            least = {
                "rundctl state": _least_ms([*rundctl, "state", "state"]),
                "python3 -I -S -c pass": _least_ms(["/usr/bin/python3", "-I", "-S", "-c", "pass"]),
                "qemu -version": _least_ms([f"{settings.load().home}/qemu/current/qemu-system-x86_64", "-version"]),
            }
        finally:
            _quietly([*rundctl, "delete", "--force", "state"])
    return {
        "load_before": round(load, 1),
        "runs": _RUNS,
        "emulated_ms": {stage: round(min(run[stage] for run in runs), 1) for stage in runs[0]},
        "least_ms": least,
    }


def _quietly(argv: list[str]) -> None:
    """Not by pipes, which a container keeps open."""
    null = subprocess.DEVNULL
    subprocess.run(argv, stdin=null, stdout=null, stderr=null, check=True)


def _staged(argv: list[str]) -> dict[str, float]:
    began = time.perf_counter()
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    whole_ms = (time.perf_counter() - began) * 1e3
    told = kvm_machine.inside.Call(0, 0, done.stderr).told_ms()
    return {**told, kvm_figures.STARTED: sum(told.values()), kvm_figures.WHOLE: whole_ms}


def _least_ms(argv: list[str]) -> float:
    """Processor time of the fastest of many, milliseconds: what others on the machine take is not ours."""
    best = float("inf")
    with open(os.devnull, "r+b") as null:
        actions = [(os.POSIX_SPAWN_DUP2, null.fileno(), target) for target in range(3)]
        for _ in range(_TIMES):
            pid = os.posix_spawn(argv[0], argv, dict(os.environ), file_actions=actions)
            _, status, usage = os.wait4(pid, 0)
            if status:
                raise kvm_machine.MachineError(f"{' '.join(argv)}: status {status}")
            best = min(best, (usage.ru_utime + usage.ru_stime) * 1e3)
    return round(best, 2)


def per_ms(found: dict[str, Any]) -> dict[str, float]:
    """Million instructions in a millisecond of this host, as each program that runs without a guest has it."""
    counted = found["instructions"]
    return {name: round(counted[name][kvm_figures.WHOLE] / ms, 2) for name, ms in found["native"]["least_ms"].items()}


def check() -> int:
    """The guard of `make test`. The figures' names, what they were and are, and the command that records them."""
    recorded = json.loads(RECORD.read_text())
    unlike = kvm_figures.differences(recorded["environment"], kvm_machine.environment())
    if unlike:
        print(
            f"the figures of {RECORD.name} are of another environment, and instructions depend on it: "
            + "; ".join(unlike)
        )
        return INCOMPARABLE
    found = measure(*_SHORT)
    save(found, Path("build/bench/kvm-short.json"))
    worse, better = kvm_figures.changes(recorded, found)
    if worse:
        print(f"these have grown by more than a tenth over {RECORD.name}:", *worse, sep="\n  ")
        print(f"Mend it; or, if it is worth it, record it in the same commit: {kvm_figures.RECORD}")
    if better:
        print(f"these are less by more than a tenth: {kvm_figures.RECORD}, so that they stay so:", *better, sep="\n  ")
    return 1 if worse else 0


def save(found: dict[str, Any], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, indent=2) + "\n")


def record(found: dict[str, Any]) -> None:
    """Figures, picture and table: a test compares the last two with the first."""
    save(found, RECORD)
    PICTURE.write_text(kvm_plot.plot(found))
    DOCUMENT.write_text(kvm_plot.with_table(DOCUMENT.read_text(), found))
    print(RECORD, PICTURE, DOCUMENT, sep="\n")


def main(words: list[str]) -> int:
    """Measure, save, print; 2 if the machine fails, `INCOMPARABLE` if there can be none here."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # scratch files go as with any other end
    lacking = kvm_machine.kvm_bed.missing()
    if lacking:
        print(f"no machine in which KVM works: {lacking}")
        return INCOMPARABLE
    try:
        if words == ["--check"]:
            return check()
        counted = json.loads(RECORD.read_text()) if words == ["--native"] else measure(*_FULL)
        found = {**counted, "native": native()}
    except (kvm_machine.MachineError, kvm_machine.kvm_bed.BedError, RundctlError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    found["million_per_ms"] = per_ms(found)
    save(found, Path("build/bench/kvm.json"))
    Path("build/bench/kvm.svg").write_text(kvm_plot.plot(found))
    print(kvm_plot.table(found))
    if words in (["--record"], ["--native"]):
        record(found)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
