"""docs/errors.md quotes errors that rundctl really has, and tells the way out of each."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

COMMONEST = 20
NOBODY = 65534


def _rows(checkout: Path) -> list[list[str]]:
    lines = (checkout / "docs/errors.md").read_text().splitlines()
    table = [line.strip("| ").split(" | ") for line in lines if line.startswith("| `")]
    assert len(table) >= COMMONEST
    return table


def _strings(checkout: Path) -> str:
    """All strings of the source, those of f-strings without what is put in."""
    found = []
    for path in checkout.glob("rundctl/**/*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        found += [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return "\n".join(found)


def test_each_text_is_one_of_the_source(checkout: Path) -> None:
    strings = _strings(checkout)
    for text, *_ in _rows(checkout):
        quoted = re.findall("`([^`]+)`", text)
        pieces = [piece.strip(" ") for quote in quoted for piece in quote.split("…")]
        # libc's words for an error number are no string of ours.
        missing = [
            piece for piece in pieces if piece not in strings and piece not in ("", ":", "operation not permitted")
        ]
        missing = [
            piece
            for piece in missing
            if not re.fullmatch(r"permission denied \(.*", piece) or piece[19:] not in strings
        ]
        assert missing == [], text


def test_each_has_a_cause_and_a_way_out(checkout: Path) -> None:
    for row in _rows(checkout):
        assert len(row) == 3, row
        assert all(row), row


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("exec", "c", "sh"), "… is not supported yet"),
        (("start", "nosuch"), "container does not exist"),
        (("run", "c"), "JSON specification file … not found"),
        (("create", "--console-socket", "/s", "c"), "terminals come later"),
    ],
)
def test_it_is_said(checkout: Path, tmp_path: Path, words: tuple[str, ...], text: str) -> None:
    assert any(f"`{text}`" in row[0] for row in _rows(checkout))
    argv = [sys.executable, "-m", "rundctl", "--root", str(tmp_path / "root"), *words]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, cwd=tmp_path, env={"PYTHONPATH": str(checkout)}
    )
    assert done.returncode != 0
    assert re.search(".*".join(map(re.escape, text.split("…"))), done.stderr), done.stderr
    assert done.stderr.count("\n") == 1
