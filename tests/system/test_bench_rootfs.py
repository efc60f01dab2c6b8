"""The comparison of root file systems measures what it says: every field is there, figures are positive, nothing is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rundctl.engine import settings
from rundctl.engine.rootfs.images import content

_BENCH = Path(__file__).resolve().parents[2] / "bench/rootfs.py"


def test_quick(tmp_path: Path, template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    del template
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    images = Path(content.root(settings.load().home))
    path = os.pathsep.join([str(_BENCH.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, _BENCH, "--quick"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "build/bench/rootfs.json").read_text())
    assert set(result["transports"]) == {"9p", "blk", "virtiofs", "erofs-pmem", "erofs-blk"}
    for name, row in result["transports"].items():
        assert "refused" not in row, (name, row)
        assert row["first_byte_ms"] > 0
        assert all(value > 0 for times in row["scan"].values() for value in times.values())
        assert set(row["fio"]) == {"seq read", "rand read", "seq write", "rand write"}
        assert all(value > 0 for job in row["fio"].values() for value in job.values())
        assert row["cpu_s"]["fio"] > 0
        assert row["memory_mib"]["host"] > 0
        assert name in done.stdout
    for private in ("upper", "disk"):
        for kind in ("xfs", "ext4"):
            assert all(row["p50_ms"] > 0 for row in result["preparation_ms"][private][kind].values())
    copied = {private: result["preparation_ms"][private]["ext4"]["in a row"]["p50_ms"] for private in ("upper", "disk")}
    assert copied["disk"] > 3 * copied["upper"], "8 MiB against some KiB, without reflinks"
    # A third where the goal is a tenth: the machine may be busy.
    rows = result["transports"]
    assert 3 * rows["erofs-pmem"]["first_scan_min_ms"] < rows["9p"]["first_scan_min_ms"]
    assert (tmp_path / "build/bench/rootfs.svg").read_text().endswith("</svg>\n")
    assert [path for path in images.glob("*/manifest.json") if str(tmp_path) in path.read_text()] == []
