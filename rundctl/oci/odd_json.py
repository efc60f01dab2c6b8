"""JSON that nobody writes on purpose, read as Go reads it, since runc does. Cold: loaded when a text holds such a thing.

* Nesting: Go takes 10,000 levels, Python's parser some hundred; what no field means is emptied.
* Text: a byte that is no UTF-8, and half of a surrogate pair, each become U+FFFD.
* A name given twice: objects are joined, of anything else the last one counts.
* A NUL in a string: JSON has it, no system call takes it.
"""

from __future__ import annotations

import re

from rundctl.errors import ConfigError
from rundctl.oci import support
from rundctl.oci.support_table import HONOURED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_GO_LEVELS = 10_000  # encoding/json's own limit
_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_NO_NEWLINE = re.compile(r"[^\n]")
_LONE = re.compile("[\ud800-\udfff]")  # pairs were joined by the parser


def flattened(text: str, levels: int) -> str:
    """The text with everything below so many levels replaced by blanks, so that lines and columns stay; ConfigError above Go's limit."""
    kept = []
    depth = copied = 0
    for found in _BRACKET.finditer(text):
        bracket = found[0]
        if bracket in "[{":
            depth += 1
            if depth > _GO_LEVELS:
                raise ConfigError(f"config.json: nested more than {_GO_LEVELS} levels deep")
            if depth == levels:
                kept.append(text[copied : found.end()])
                copied = found.end()
        elif bracket in "]}":
            if depth == levels:
                kept.append(_NO_NEWLINE.sub(" ", text[copied : found.start()]))
                copied = found.start()
            depth -= 1
    kept.append(text[copied:] if depth < levels else _NO_NEWLINE.sub(" ", text[copied:]))
    return "".join(kept)


def without_halves(value: Any) -> Any:
    """A copy in which each lone surrogate is U+FFFD, in names too."""
    if isinstance(value, str):
        return _LONE.sub("\ufffd", value)
    if isinstance(value, list):
        return [without_halves(item) for item in value]
    if isinstance(value, dict):
        return {without_halves(key): without_halves(item) for key, item in value.items()}
    return value


def joined(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """One object of the members of one in which names come more than once."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        before = result.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            result[key] = joined([*before.items(), *value.items()])
        else:
            result[key] = value
    return result


def check_nuls(spec: dict[str, Any]) -> None:
    """ConfigError that names the first field with a NUL in it, of those that are used."""
    for path, text in _strings(spec, "", ""):
        if "\0" in text:
            raise ConfigError(f"config.json: {path}: a string with a NUL, which Linux cannot take")


def _strings(value: Any, pattern: str, path: str) -> Iterator[tuple[str, str]]:
    """Where each string is, names of maps too; annotations stay on the host, where a NUL does no harm."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, f"{pattern}[]" if isinstance(item, dict) else pattern, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            name = f"{pattern}.{key}" if pattern else key
            place = f"{path}.{key}" if path else key
            if pattern in support.MAPS and pattern != "annotations":
                yield path, key
                yield place, item
            elif support.status(name) == HONOURED:
                yield from _strings(item, name, place)
