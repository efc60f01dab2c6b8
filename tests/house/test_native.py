"""The files of a native program need each other in one direction: none is, by way of others, needed by what it needs."""

from __future__ import annotations

import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "native"))
import build


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
