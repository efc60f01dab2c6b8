"""Packaging hook: compiles agent and shim, generates the validator, and puts both and the schemas into the wheel."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

if TYPE_CHECKING:
    from types import ModuleType

GIT_HEAD_LENGTH = 40


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg,misc,unused-ignore]
    """What hatchling calls before it packs the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 (hatchling's interface)
        """Fill ``rundctl/_native`` and ``rundctl/oci/_generated``; add what .gitignore hides."""
        root = Path(self.root)
        native = root / "rundctl/_native"
        programs = _load(root / "native/build.py")
        try:
            programs.build(native)
        except programs.BuildError as error:
            sys.exit(f"rundctl: {error}")  # a traceback of the packaging tools would bury the advice
        generated = _generate(root)
        (native / "COMMIT").write_text(_commit(root))
        included = [*native.iterdir(), *generated.iterdir()]
        build_data["force_include"].update({str(p): str(p.relative_to(root)) for p in included if p.is_file()})
        build_data["force_include"][str(root / "schemas")] = "rundctl/_schemas"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def _generate(root: Path) -> Path:
    """Write the validator of config.json from the vendored schemas; the directory it is in."""
    sys.path.insert(0, str(root))
    try:
        from rundctl.oci import generate, schema

        out = root / "rundctl/oci/_generated"
        generate.generate(schema.directory(), str(out / "config_validator.py"))
    finally:
        sys.path.remove(str(root))
    return out


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _commit(root: Path) -> str:
    """HEAD, read without git(1), which a bare machine may lack; RUNDCTL_COMMIT for builds outside a checkout; or empty."""
    if given := os.environ.get("RUNDCTL_COMMIT"):
        return given if given.isalnum() else ""
    head = root / ".git/HEAD"
    if not head.is_file():
        return ""
    text = head.read_text().strip()
    name = text.removeprefix("ref: ")
    if name == text:
        return text
    loose = root / ".git" / name
    if loose.is_file():
        return loose.read_text().strip()[:GIT_HEAD_LENGTH]
    packed = root / ".git/packed-refs"
    lines = packed.read_text().splitlines() if packed.is_file() else []
    return next((line.split(" ")[0] for line in lines if line.endswith(f" {name}")), "")
