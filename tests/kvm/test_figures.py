"""What a container costs where KVM works has not grown: instructions, counted in a machine of their own (HACKING.md, "Figures")."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .. import notes

if TYPE_CHECKING:
    from collections.abc import Callable

BENCH = Path(__file__).resolve().parents[2] / "bench/kvm.py"
INCOMPARABLE = 77


@pytest.mark.outside
def test_no_stage_has_grown_by_a_tenth(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    argv = [sys.executable, BENCH, "--check"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode == INCOMPARABLE:
        pytest.skip(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    if done.stdout:
        record_property(notes.NAME, done.stdout)
