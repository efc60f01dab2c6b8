"""What a call loads: imports are start-up cost, paid by every call of every container."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .imports import HEAVY, OF_SETTINGS, PROBE, SAY, loaded

if TYPE_CHECKING:
    from pathlib import Path

HOT = ("create", "start", "state", "kill", "delete")
CREATE = f"""
import sys
import rundctl.cli, rundctl.commands.create, rundctl.engine.container.lifecycle, rundctl.engine.container.create, rundctl.engine.cgroups.cgroup_pool
{SAY}
"""
DELETE = f"""
import sys
import rundctl.cli, rundctl.commands.delete, rundctl.engine.container.lifecycle, rundctl.engine.cgroups.cgroup_pool, rundctl.engine.cgroups.refill
{SAY}
"""


@pytest.mark.parametrize("settings", ["", "memory_mib = 256"], ids=["no settings", "a settings file"])
@pytest.mark.parametrize("verb", HOT)
def test_hot_verbs_load_nothing_heavy(verb: str, settings: str, tmp_path: Path) -> None:
    """The container does not exist: most modules of the verb are loaded by then. tests/system/test_imports.py sees one that does."""
    file = tmp_path / "config.toml"
    file.write_text(settings)
    words = ("--root", f"{tmp_path}/none", verb, "no-such-container")
    code, modules = loaded(PROBE, *words, RUNDCTL_CONFIG=str(file) if settings else "")
    assert code == 1
    assert f"rundctl.commands.{verb}" in modules
    assert f"rundctl.engine.container.{'states' if verb == 'state' else 'lifecycle'}" in modules
    assert not modules & (HEAVY - OF_SETTINGS if verb == "create" else HEAVY)
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
