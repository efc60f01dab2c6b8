"""A second build of the lean kernel and the lean QEMU has the same bytes as the first. Slow: `make test-rebuild`, not part of `make test`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

RUNDCTL = os.environ.get("RUNDCTL", f"{sys.prefix}/bin/rundctl")
BUILD_S = 5400


@pytest.mark.parametrize("what", ["qemu", "kernel"])
def test_a_second_build_has_the_same_bytes(what: str) -> None:
    argv = [RUNDCTL, what, "build", "--check"]
    done = subprocess.run(argv, capture_output=True, timeout=BUILD_S, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith(": a second build has the same bytes\n")
    assert "left out" not in done.stderr
