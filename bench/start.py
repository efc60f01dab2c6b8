"""Medians of ``rundctl run`` of /bin/true: from the template, and cold. One run, one table, JSON beside it.

usage: start.py [RUNS [COLD_RUNS]]          writes build/bench/start.json
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from busybox import RUNDCTL, make_bundle


def run_once(bundle: Path, name: str, template: str) -> tuple[float, dict[str, float]]:
    """Wall-clock milliseconds of one run, and its stages."""
    before = time.perf_counter()
    argv = [RUNDCTL, "run", "--timings", "--template", template, "--bundle", str(bundle), name]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wall_ms = (time.perf_counter() - before) * 1e3
    return wall_ms, {stage: float(ms) for stage, ms in re.findall(r"(\w+)=([\d.]+)", done.stderr)}


def measure(bundle: Path, template: str, runs: int) -> dict[str, object]:
    """Median and extremes of the wall-clock time, medians of the stages; all in milliseconds."""
    rows = [run_once(bundle, f"bench-{template}-{number}", template) for number in range(runs)]
    walls = [wall for wall, _ in rows]
    stages = {name: round(statistics.median(stages[name] for _, stages in rows), 1) for name in rows[0][1]}
    return {
        "runs": runs,
        "median_ms": round(statistics.median(walls), 1),
        "min_ms": round(min(walls), 1),
        "max_ms": round(max(walls), 1),
        "stages_ms": stages,
    }


def main() -> None:
    """Measure, print, save."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    cold_runs = int(sys.argv[2]) if len(sys.argv) > 2 else runs
    with tempfile.TemporaryDirectory() as directory:
        bundle = make_bundle(Path(directory) / "bundle", "/bin/true")
        run_once(bundle, "bench-warm-up", "on")
        result: dict[str, object] = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{os.cpu_count()} x {platform.processor() or platform.machine()}, Linux {platform.release()}",
            "command": " ".join(["bench/start.py", *sys.argv[1:]]),
            "template": measure(bundle, "on", runs),
            "cold": measure(bundle, "off", cold_runs),
        }
    template, cold = result["template"], result["cold"]
    assert isinstance(template, dict)
    assert isinstance(cold, dict)
    result["ratio"] = round(cold["median_ms"] / template["median_ms"], 2)
    target = Path("build/bench/start.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n")
    for name, row in (("template", template), ("cold", cold)):
        print(
            f"{name:10} median {row['median_ms']:8.1f} ms   min {row['min_ms']:8.1f}   max {row['max_ms']:8.1f}   ({row['runs']} runs)"
        )
        print(f"{'':10} {row['stages_ms']}")
    print(f"cold / template = {result['ratio']}   ({target})")


main()
