"""What a call loads: imports are start-up cost, paid by every call of every container."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# Each costs time, and none is needed where nothing goes wrong; nor, of ours, where nobody asks for that transport.
HEAVY = frozenset(
    [
        "typer",
        "rich",
        "jsonschema",
        "pyroute2",
        "psutil",
        "dataclasses",
        "typing",
        "subprocess",
        "asyncio",
        "logging",
        "inspect",
        "pathlib",
        "tempfile",
        "shutil",
        "hashlib",
        "ctypes",
        "argparse",
        "importlib.metadata",
        "tomllib",
        "threading",
        "rundctl.engine.rootfs.disk",
        "rundctl.engine.rootfs.shares",
        "rundctl.vmm.virtiofsd",
    ]
)
HOT = ("create", "start", "state", "kill", "delete")
PROBE = """
import json, sys
from rundctl import cli
code = cli.main(sys.argv[1:])
print(json.dumps([code, sorted(sys.modules)]))
"""
CREATE = """
import json, sys
import rundctl.cli, rundctl.commands.create, rundctl.engine.container.lifecycle, rundctl.engine.container.create, rundctl.engine.cgroups.cgroup_pool
print(json.dumps([0, sorted(sys.modules)]))
"""
DELETE = """
import json, sys
import rundctl.cli, rundctl.commands.delete, rundctl.engine.container.lifecycle, rundctl.engine.cgroups.cgroup_pool, rundctl.engine.cgroups.refill
print(json.dumps([0, sorted(sys.modules)]))
"""


def loaded(program: str, *words: str) -> tuple[int, set[str]]:
    """Exit code and modules of an interpreter without `site`, as the installed command runs."""
    source = f"import sys; sys.path[:0] = {sys.path!r}\n{program}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", source, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    code, modules = json.loads(done.stdout.splitlines()[-1])
    return code, set(modules)


@pytest.mark.parametrize("verb", HOT)
def test_hot_verbs_load_nothing_heavy(verb: str, tmp_path: object) -> None:
    """The container does not exist: that is late enough for every module of the verb to be loaded."""
    code, modules = loaded(PROBE, "--root", f"{tmp_path}/none", verb, "no-such-container")
    assert code == 1
    assert f"rundctl.commands.{verb}" in modules
    assert "rundctl.engine.container.lifecycle" in modules
    assert not modules & HEAVY
    if verb != "create":  # who makes cgroups, or has found some to give back, needs their modules
        assert not [name for name in modules if "cgroup" in name]


@pytest.mark.parametrize("program", [CREATE, DELETE])
def test_what_create_and_delete_load_later_is_not_heavy(program: str) -> None:
    _, modules = loaded(program)
    assert "rundctl.engine.cgroups.cgroup_pool" in modules
    assert not modules & HEAVY


def test_a_good_call_does_not_load_the_interface() -> None:
    code, modules = loaded(PROBE, "--version")
    assert code == 0
    assert "rundctl.commands.interface" not in modules
    assert "rundctl.engine" not in modules


def test_the_probe_sees_what_is_loaded() -> None:
    _, modules = loaded(PROBE, "--help")
    assert {"typer", "inspect"} <= modules
