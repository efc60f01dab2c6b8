"""Files that documents name are there: a moved file leaves no sign-post to where it was."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# `engine/rootfs/disk.py`, `native/shim/{vm,assembly}.c`; a path from the root is a host's.
NAMED = re.compile(r"`((?:[\w.*-]+/)*[\w{},*-]+\.(?:py|c|h|sh))`")


def spelled_out(name: str) -> list[str]:
    """``a{b,c}`` is ab and ac."""
    before, brace, rest = name.partition("{")
    inside, _, after = rest.partition("}")
    return [before + word + after for word in inside.split(",")] if brace else [name]


def test_documents_name_files_that_are_there(checkout: Path) -> None:
    documents = [*checkout.glob("*.md"), *checkout.glob("docs/**/*.md"), *checkout.glob("native/*.md")]
    named = {
        (document.name, name)
        for document in documents
        if document.name != "CHANGELOG.md"  # tells of what was
        for match in NAMED.findall(document.read_text())
        for name in spelled_out(match)
    }
    tops = ("rundctl", "native", "tests", "bench", "tools", "docs", ".ci")
    there = [path for top in tops for path in (checkout / top).rglob("*") if path.is_file()]
    assert len(named) > 50
    missing = {(document, name) for document, name in named if not any(path.match(name) for path in there)}
    assert missing == set()


def test_architecture_names_each_file_of_the_engine_in_its_room(checkout: Path) -> None:
    listed = (checkout / "ARCHITECTURE.md").read_text().partition("## The files of each room")[2].partition("\n## ")[0]
    items = re.split(r"^\* \*\*(\w+)\*\*", listed, flags=re.MULTILINE)
    rooms = dict(zip(items[1::2], items[2::2], strict=True))
    files = [path for path in (checkout / "rundctl/engine").glob("*/**/*.py") if path.name != "__init__.py"]
    assert len(files) > 40
    assert [path for path in files if f"`{path.name}`" not in rooms.get(path.parent.name, "")] == []
