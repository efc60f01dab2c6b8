"""tools/setup: its lists of packages are those that the builds ask for, and a level that is none is refused."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from rundctl.guest import kernel_build
from rundctl.host import process
from rundctl.vmm import qemu_build

_ESSENTIAL = {"apt", "dpkg", "perl-base", "tar"}  # on every Debian
_NEEDS = {need.package: need for need in (*kernel_build._NEEDS, *qemu_build._needs("7.2"))}


@pytest.fixture
def lists(checkout: Path) -> dict[str, dict[str, str]]:
    """List of tools/setup → package → the file that is looked for."""
    script = (checkout / "tools/setup").read_text()
    found = re.findall(r"^([A-Z]+)_NEEDS='\n(.*?)\n'$", script, re.MULTILINE | re.DOTALL)
    return {name: dict(line.split(":") for line in lines.splitlines()) for name, lines in found}


def test_what_the_builds_need_is_installed(lists: dict[str, dict[str, str]]) -> None:
    installed = {**lists["RUN"], **lists["TEST"], **lists["BUILD"]}
    assert set(_NEEDS) - _ESSENTIAL - set(installed) == set()
    assert set(lists["BUILD"]) - set(_NEEDS) == set()


@pytest.mark.parametrize("package", sorted(set(_NEEDS) - _ESSENTIAL))
def test_both_look_for_the_same_file(lists: dict[str, dict[str, str]], package: str) -> None:
    looked_for = {**lists["RUN"], **lists["TEST"], **lists["BUILD"]}[package]
    need = _NEEDS[package]
    if "/" in need.what:
        assert looked_for == need.what
    else:
        directory, name = os.path.split(looked_for)
        assert name == need.what
        assert directory in process.TOOL_DIRECTORIES


def test_each_package_is_in_one_list(lists: dict[str, dict[str, str]]) -> None:
    packages = [package for each in lists.values() for package in each]
    assert sorted(packages) == sorted(set(packages))
    assert set(lists) == {"RUN", "TEST", "BUILD"}


_LEVELS = {"demo": "run", "lint": "test", "test-unit": "test", "test-native": "test", "test-contract": "test"}
_SYSTEM = ("test", "test-system", "test-rebuild", "bench", "bench-rootfs", "bench-template")


@pytest.mark.parametrize(("target", "level"), [*_LEVELS.items(), *((target, "system") for target in _SYSTEM)])
def test_a_target_sets_up_what_it_needs(checkout: Path, target: str, level: str) -> None:
    # As if it were the first make: the one that runs these tests leaves its flags and its level to those below.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    argv = ["make", "-n", target]
    told = subprocess.run(argv, cwd=checkout, env=environment, capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[0] == f"tools/setup {level}"


def test_an_unknown_level_is_refused(checkout: Path) -> None:
    done = subprocess.run([checkout / "tools/setup", "all"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "setup: unknown: all (run, test or system)\n"
