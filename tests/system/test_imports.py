"""What the calls of a real container's life load: imports are start-up cost. tests/house/test_startup.py has those that need no VM."""

from __future__ import annotations

import site
from typing import TYPE_CHECKING

import pytest

from ..house.imports import HEAVY, OF_SETTINGS, PROBE, loaded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Cli

LIFE = ("create", "state", "start", "state", "kill", "delete")


@pytest.mark.parametrize("has_settings", [False, True], ids=["no settings", "a settings file"])
def test_a_life_loads_nothing_heavy(
    cli: Cli, bundle: Callable[..., Path], settle: Callable[..., None], has_settings: bool
) -> None:
    """A settings file is read by create alone, and costs it the module that reads it."""
    if has_settings:
        settle()
    where = str(bundle("/bin/sleep", "1000"))
    flags = {"create": ("--bundle", where), "delete": ("--force",)}
    for verb in LIFE:
        words = ("--root", str(cli.root), verb, *flags.get(verb, ()), "c")
        code, modules = loaded(PROBE, *words, path=site.getsitepackages())
        assert code == 0, verb
        assert f"rundctl.commands.{verb}" in modules
        may = OF_SETTINGS if has_settings and verb == "create" else frozenset()
        assert modules & HEAVY <= may, verb
        if verb == "create":
            assert "rundctl.vmm.cmdline" in modules, "it has made a VM"
