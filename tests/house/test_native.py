"""The C: files of a program need each other in one direction only, and two tools that look for faults find none."""

from __future__ import annotations

import graphlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "native"))
import build

if TYPE_CHECKING:
    from collections.abc import Callable


def symbols(path: Path) -> tuple[set[str], set[str]]:
    """What an object defines for others, and what it needs of them: functions and data (nm(1))."""
    listed = subprocess.run(["nm", path], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    kinds = {name: kind for *_, kind, name in map(str.split, listed)}
    defined = {name for name, kind in kinds.items() if kind.isupper() and kind != "U"}
    return defined, {name for name, kind in kinds.items() if kind == "U"}


def needs(objects: list[Path]) -> dict[str, set[str]]:
    """Object → the objects that define what it needs."""
    tables = {path.stem: symbols(path) for path in objects}
    owners = {name: stem for stem, (defined, _) in tables.items() for name in defined}
    return {stem: {owners[name] for name in needed & set(owners)} for stem, (_, needed) in tables.items()}


def compiled(directory: Path, files: list[Path], *flags: str) -> list[Path]:
    # Not optimised: a call that the compiler has inlined is a need all the same.
    subprocess.run(["cc", *build.LANGUAGE, *flags, "-O0", "-c", *files], cwd=directory, check=True)
    objects = [directory / path.with_suffix(".o").name for path in files]
    assert len(set(objects)) == len(files)  # a name twice would hide one of them
    return objects


def test_a_circle_is_found(tmp_path: Path) -> None:
    texts = {
        "one": "int two(void); int one(void) { return two(); }",
        "two": "int (*three(void))(void); int two(void) { return !three(); }",
        "three": "int one(void); int (*three(void))(void) { return one; }",
    }
    files = [tmp_path / f"{name}.c" for name in texts]
    for path in files:
        path.write_text(texts[path.stem] + "\n")
    graph = needs(compiled(tmp_path, files))
    assert graph == {"one": {"two"}, "two": {"three"}, "three": {"one"}}
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("program", build.PROGRAMS)
def test_needs_run_one_way(program: str, tmp_path: Path) -> None:
    files = [*(build.NATIVE / "common").glob("*.c"), *build.sources(program)]
    graph = needs(compiled(tmp_path, files, f"-I{build.NATIVE / program}"))
    assert graph["serve"] >= {"framing"}
    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"native/{program}: a circle: {' <- '.join(error.args[1])}")
    assert order[-1] == "main"


def findings(tool: Callable[[Path, str], list[str]]) -> str:
    """What a tool says of each file of C, two at a time; ``tool``: its argv for a file, and the directory of its headers."""
    jobs = [(path, f"-I{build.NATIVE / part}") for part in ("common", *build.PROGRAMS) for path in build.sources(part)]

    def look(job: tuple[Path, str]) -> str:
        done = subprocess.run(tool(*job), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        return done.stdout if done.returncode else ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return "".join(pool.map(look, jobs))


def need(program: str, version: str) -> None:
    """Each version finds other things, and not all of them are there: the C here is held to what Debian 12's find."""
    said = subprocess.run([program, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    if version not in said:
        pytest.skip(f"the C here is looked through by {program} {version}, this is: {said.splitlines()[0]}")


def analyze(path: Path, headers: str) -> list[str]:
    return ["gcc", *build.LANGUAGE, headers, "-fanalyzer", "-Werror", "-c", "-o", os.devnull, str(path)]


def test_gcc_s_analyzer_finds_nothing() -> None:
    """Leaks, uses after free, null pointers along every path of a file; it knows the cleanup attribute."""
    need("gcc", " 12.")
    assert findings(analyze) == ""


def test_gcc_s_analyzer_would_find_something(tmp_path: Path) -> None:
    need("gcc", " 12.")
    path = tmp_path / "leak.c"
    path.write_text(
        "#include <stdlib.h>\nint f(int n) { char *p = malloc(9); if (!p || n) return 1; free(p); return 0; }\n"
    )
    said = subprocess.run(analyze(path, f"-I{tmp_path}"), stderr=subprocess.PIPE, text=True, check=False)
    assert "-Werror=analyzer-malloc-leak" in said.stderr


def test_clang_tidy_finds_nothing() -> None:
    """What .clang-tidy lists, with a reason for each check left out."""
    need("clang-tidy", "version 14.")
    assert findings(lambda path, headers: ["clang-tidy", "--quiet", str(path), "--", *build.LANGUAGE, headers]) == ""
