"""The bench of cgroups measures what it says: every field is there, figures are positive, nothing is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from rundctl.host import cgroupfs

_BENCH = Path(__file__).resolve().parents[2] / "bench/cgroup.py"


def test_quick(tmp_path: Path, template: str) -> None:
    del template
    path = os.pathsep.join([str(_BENCH.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, _BENCH, "--quick"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "build/bench/cgroup.json").read_text())
    trees = cgroupfs.hierarchies()
    expected = {f"v{2 if tree.is_v2 else 1} here" for tree in trees} | {"v2 in a VM"}
    assert set(result["places"]) == expected
    for name, place in result["places"].items():
        rows = place["starts"]
        assert {(row["way"], row["existing"], row["at_once"]) for row in rows} == {
            (way, existing, count) for way in ("spot", "pool") for existing in (0, 8) for count in (1, 4)
        }
        for row in rows:
            assert row["count"] >= 4
            for figures in (row["p50_ms"], row["p99_ms"]):
                assert set(figures) == {"lease", "make", "configure", "attach", "start"}
                assert all(value > 0 for value in figures.values())
            assert row["all_ms"] > 0
        assert place["lease_only"]["p50_ms"] > 0
        assert place["attach_after_quiet_ms"] > 0
        for row in place["populated"]:
            assert {f"{kind}_{where}" for kind in ("asleep", "waking") for where in ("one", "own")} < set(row)
        assert 99 < sum(result["conclusion"][name]["shares_spot_percent"].values()) < 101
        assert name in done.stdout
    vm = result["places"]["v2 in a VM"]["hierarchies"]
    assert {"cpu", "io", "memory", "pids"} < set(" ".join(vm).split())
    left = {name for tree in trees for name in tree.children("") if name.startswith("rundctl-bench-")}
    assert [
        name for name in left if not Path(f"/proc/{name.rpartition('-')[2]}").exists()
    ] == []  # others may run theirs
