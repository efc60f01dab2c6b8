"""One factor for all deadlines: where it comes from, who asks for it, and who uses it."""

from __future__ import annotations

import ast
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import rundctl
from rundctl.engine import settings
from rundctl.errors import ConfigError, HostError
from rundctl.host import patience, process

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = sorted(Path(rundctl.__file__).parent.rglob("*.py"))
# What a constant of seconds may be handed to: the question for the factor, or a function that asks it.
ASKING = {"seconds", "_deadline", "ask", "connect", "run"}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(patience.ENVIRONMENT, raising=False)
    yield
    patience.configured_by(lambda: 1)


def test_the_environment_comes_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    patience.configured_by(lambda: 3)
    assert patience.seconds(2.0) == 6.0
    monkeypatch.setenv(patience.ENVIRONMENT, "5")
    patience.configured_by(lambda: 3)
    assert patience.seconds(2.0) == 10.0


def test_it_is_asked_once_and_only_by_who_waits() -> None:
    asked: list[int] = []

    def ask() -> int:
        asked.append(1)
        return 2

    patience.configured_by(ask)
    assert not asked
    assert [patience.factor(), patience.factor()] == [2, 2]
    assert len(asked) == 1


@pytest.mark.parametrize("said", ["0", "-1", "101", "1.5", "x", "²", "1000000000000", " 2"])
def test_what_is_no_factor_is_refused(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv(patience.ENVIRONMENT, said)
    with pytest.raises(ConfigError, match="RUNDCTL_PATIENCE: expected an integer from 1 to 100, got"):
        patience.factor()


@pytest.mark.parametrize(
    ("text", "factor"),
    [("patience = 7", 7), ("memory_mib = 256", 1), ("# patience\n", 1), ('patience = "x"', 1), ("patience = ", 1)],
)
def test_verbs_that_need_no_setting_have_the_files_factor(tmp_path: Path, text: str, factor: int) -> None:
    """And work with a file that is wrong."""
    file = tmp_path / "config.toml"
    file.write_text(text)
    assert settings.patience({"RUNDCTL_CONFIG": str(file)}) == factor
    assert settings.patience({"RUNDCTL_CONFIG": str(tmp_path / "none")}) == 1


def test_who_loads_the_settings_is_told_what_is_wrong_with_it(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("patience = 101")
    with pytest.raises(ConfigError, match="patience: expected an integer from 1 to 100"):
        settings.load({"RUNDCTL_CONFIG": str(file)})


def test_a_wait_takes_so_much_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(patience.ENVIRONMENT, "4")
    patience.configured_by(lambda: 1)
    began_s = time.monotonic()
    with pytest.raises(HostError, match=r"did not end within 0\.4 s"):
        process.run(["sleep", "60"], what="wait", timeout_s=0.1)
    assert time.monotonic() - began_s >= 0.4


def _is_deadline(node: ast.AST) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name.endswith(("TIMEOUT_S", "DEADLINE_S", "LAST_WORDS_S")) and isinstance(node.ctx, ast.Load)  # type: ignore[attr-defined]


def _unasked(tree: ast.AST) -> Iterator[int]:
    """Lines that use a constant deadline as it is; defaults of parameters and names for it are no use."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in filter(_is_deadline, ast.walk(tree)):
        above, inner = parents[node], node
        while isinstance(above, (ast.IfExp, ast.keyword, ast.Subscript, ast.BinOp)):
            above, inner = parents[above], above
        if isinstance(above, (ast.arguments, ast.Assign)):
            continue
        if isinstance(above, ast.Call) and inner is not above.func:
            function = above.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if name in ASKING:
                continue
        yield node.lineno  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: os.path.relpath(path, Path(rundctl.__file__).parent))
def test_no_deadline_is_used_without_the_factor(path: Path) -> None:
    assert not list(_unasked(ast.parse(path.read_text())))


def test_a_deadline_without_the_factor_is_seen() -> None:
    lines = (
        "wait(A_TIMEOUT_S)",
        "wait(seconds(A_TIMEOUT_S))",
        "wait(vm.B_TIMEOUT_S if x else 0)",
        "def f(x=A_TIMEOUT_S): pass",
    )
    text = "\n".join(lines)
    assert list(_unasked(ast.parse(text))) == [1, 3]
