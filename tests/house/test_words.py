"""Documents are in short sentences: a reader who is no native speaker understands them at one reading.

A sentence has at most 25 words (35 in a decision, docs/adr), a cell of a table at most 40. A code span is one word, and so is the address of a link none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SENTENCE = 25
DECISION = 35
CELL = 40

# What is not prose: fenced code, comments (they mark generated tables).
APART = re.compile(r"^ *```.*?^ *```$|<!--.*?-->", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)[^`].*?\1", re.DOTALL)
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
# An item of a list, a heading or a blank line ends what stood before it, and so does a table.
BLOCK = re.compile(r"\n(?= *(?:[*-]|\d+\.) |#|\|)|\n\s*\n|(?<=\|)\n")
ENDS = re.compile(r"[.?!]+[)\"'*_]*\s+")


def words(text: str) -> int:
    """Signs that stand alone (a dash, an arrow, a plus) are no words."""
    return sum(any(letter.isalnum() for letter in word) for word in text.split())


def plain(text: str) -> str:
    """The prose: of a code span one word is left, of a link its text."""
    return LINK.sub(r"\1", CODE.sub("Code", APART.sub("\n\n", text)))


def too_long(text: str, sentence: int = SENTENCE) -> Iterator[str]:
    """The sentences and cells of a document that have too many words, each with its number of them."""
    for block in BLOCK.split(plain(text)):
        if block.lstrip().startswith("|"):
            pieces, most = block.split("|"), CELL
        elif block.startswith("#"):
            continue
        else:
            pieces, most = ENDS.split(block), sentence
        yield from (f"{words(piece)}: {' '.join(piece.split())}" for piece in pieces if words(piece) > most)


def test_sentences_and_cells_are_short(checkout: Path) -> None:
    documents = sorted([*checkout.glob("*.md"), *checkout.glob("docs/**/*.md"), *checkout.glob("native/*.md")])
    documents.remove(checkout / "CHANGELOG.md")  # tells of what was
    assert len(documents) > 15
    long = [
        f"{path.relative_to(checkout)}: {piece}"
        for path in documents
        for piece in too_long(path.read_text(), DECISION if path.parent.name == "adr" else SENTENCE)
    ]
    assert long == [], "\n".join(long)


def test_long_ones_are_found() -> None:
    sentence = "word " * SENTENCE + "and `one` more."
    cell = "word " * CELL
    assert not [*too_long(f"# {sentence}\n```\n{sentence}\n```\n* {'word ' * SENTENCE}\n* {'word ' * SENTENCE}\n")]
    assert (
        len([*too_long(f"Short one. {sentence} Short one.\n\n1. {sentence}\n\n| {cell} | {cell} one |\n| {cell} |\n")])
        == 3
    )
