"""The native programs, built with sanitizers, and a shim to talk to: the tests play QEMU's end of the agent channel."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "native"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import build
from shim_rig import Shim


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory):
    return build.build(tmp_path_factory.mktemp("sanitized"), sanitize=True)


@pytest.fixture(scope="session")
def released(tmp_path_factory):
    return build.build(tmp_path_factory.mktemp("released"))


@pytest.fixture
def launch(sanitized, tmp_path):
    """Launch shims with a function; those that still live are ended after the test, and sanitizer findings fail it."""
    shims = []

    def make(*, wait=True, **arguments):
        directory = tmp_path / f"c{len(shims)}"
        directory.mkdir()
        shim = Shim(arguments.pop("program", sanitized["shim"]), directory, **arguments)
        shims.append(shim)
        return shim.started() if wait else shim

    yield make
    for shim in shims:
        shim.end()
