"""The native programs, built with sanitizers, and a shim to talk to: the tests play QEMU's end of the agent channel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "native"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import build
from agent_rig import Bundle, Rig
from shim_rig import Shim

from rundctl.host.mounts import PrivateMounts

WRAPPED = ("write", "cgroup_remove", "clock_settime", "clock_adjtime", "nanosleep", "sync")


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory):
    return build.build(tmp_path_factory.mktemp("sanitized"), sanitize=True)


@pytest.fixture(scope="session")
def released(tmp_path_factory):
    return build.build(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="session")
def faulty(tmp_path_factory):
    """The agent with agent_faults.c: it fails when told to, and leaves this host's clock and disks alone."""
    target = tmp_path_factory.mktemp("faulty") / "agent"
    source = Path(__file__).with_name("agent_faults.c")
    wrapped = [f"-Wl,--wrap={name}" for name in WRAPPED]
    subprocess.run([*build.command("agent", target, sanitize=True), source, *wrapped], check=True)
    return target


@pytest.fixture
def rig(sanitized):
    """An agent to talk to."""
    with Rig(sanitized["agent"]) as made:
        yield made


@pytest.fixture
def bundle(tmp_path):
    """A container's files."""
    return Bundle(tmp_path)


@pytest.fixture
def own_mounts():
    """The test and what it starts have a mount namespace, in which nobody else's mounts come and go, and which hears of every mount below it."""
    with PrivateMounts():
        for propagation in ("--make-rprivate", "--make-rshared"):
            subprocess.run(["mount", propagation, "/"], check=True)
        yield


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
