"""The checkers, as tests: one command runs them all and a failure shows their words."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
LINES_MOST = 450
CLANG_FORMAT = 14  # Debian 12's
SOURCES = ("rundctl", "native", "tests", "tools", "bench", "hatch_build.py")
SUFFIXES = (".py", ".c", ".h")
GENERATED = ("_generated", "_native", "__pycache__", "rundctl.egg-info")


def run(checkout: Path, *argv: str) -> None:
    done = subprocess.run(argv, cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout}"


@pytest.mark.parametrize(
    "argv",
    [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",), ("lint-imports",)],
    ids=["ruff", "format", "mypy", "layers"],
)
def test_checker(checkout: Path, argv: tuple[str, ...]) -> None:
    run(checkout, str(BIN / argv[0]), *argv[1:])


def sources(checkout: Path) -> list[Path]:
    tops = [checkout / top for top in SOURCES]
    files = [path for top in tops for path in ([top] if top.is_file() else sorted(top.rglob("*")))]
    found = [path for path in files if path.suffix in SUFFIXES and not set(path.parts) & set(GENERATED)]
    assert len(found) > len(SOURCES)
    return found


def test_files_are_short(checkout: Path) -> None:
    long = {
        str(path): count for path in sources(checkout) if (count := len(path.read_text().splitlines())) > LINES_MOST
    }
    assert long == {}


def texts(checkout: Path) -> list[Path]:
    hidden = {
        ".git",
        ".venv",
        ".mypy_cache",
        ".ruff_cache",
        ".pytest_cache",
        ".hypothesis",
        ".import_linter_cache",
        "build",
        *GENERATED,
    }
    return [
        path
        for path in sorted(checkout.rglob("*"))
        if path.is_file() and not set(path.relative_to(checkout).parts) & hidden
    ]


def test_files_name_no_place_but_the_user_s(checkout: Path) -> None:
    """Paths of the machine this was written on mean nothing elsewhere."""
    elsewhere = re.compile(re.escape(os.fsencode(checkout)) + rb"|(?<![\w.])/[o]pt/(?!rundctl\b)")
    found = {str(path): elsewhere.findall(path.read_bytes()) for path in texts(checkout)}
    assert {path: places for path, places in found.items() if places} == {}


def test_c_is_formatted(checkout: Path) -> None:
    """`clang-format -i FILE` makes it so; other versions have other opinions on the same style."""
    version = subprocess.run(["clang-format", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    if f"version {CLANG_FORMAT}." not in version:
        pytest.skip(f"the C here has the format of clang-format {CLANG_FORMAT}, this is: {version.strip()}")
    files = [str(path) for path in sources(checkout) if path.suffix in {".c", ".h"}]
    run(checkout, "clang-format", "--dry-run", "-Werror", *files)


def test_shell_scripts_parse(checkout: Path) -> None:
    for script in ("tools/setup", ".ci/run", "docs/examples/ci-job.sh"):
        run(checkout, "/bin/sh", "-n", script)
