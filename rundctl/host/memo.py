"""Answers that are dear to find, remembered beside the identity of what they were found from.

One JSON file holds digests of files and other facts; each is kept with the stat identity of its file, and is worth nothing once that differs.
The file is a cache: missing, damaged or lost to a concurrent writer, it costs time and nothing else.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress

from rundctl.host import files
from rundctl.host.manifest import identity_here

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


_CHUNK = 1 << 20


def sha256(path: str) -> str:
    """Digest of a file's contents. Never on the path of a start."""
    import hashlib

    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class Memo:
    """The remembered answers of one file: ``recall`` is cheap, ``digest`` and ``remember`` may write the file at ``save``."""

    __slots__ = ("_changed", "_facts", "_path")

    def __init__(self, path: str) -> None:
        self._path = path
        self._facts: dict[str, dict[str, Any]] = {}
        self._changed: set[str] = set()
        self._facts = _read(path)

    def recall(self, name: str, *paths: str) -> Any:
        """The answer remembered under ``name``, None if there is none or one of ``paths`` is not what it was."""
        entry = self._facts.get(name)
        if entry is None or entry.get("of") != [[path, identity_here(path)] for path in paths]:
            return None
        return entry.get("is")

    def remember(self, name: str, answer: Any, *paths: str) -> None:
        """Keep an answer found from ``paths`` as they are now."""
        self._facts[name] = {"of": [[path, identity_here(path)] for path in paths], "is": answer}
        self._changed.add(name)

    def known_digest(self, path: str) -> str | None:
        """A file's SHA-256 if it is known without reading the file."""
        answer = self.recall(f"sha256 {path}", path)
        return answer if isinstance(answer, str) else None

    def digest(self, path: str) -> str:
        """A file's SHA-256, read if need be. OSError if it cannot be read."""
        known = self.known_digest(path)
        if known is None:
            before = identity_here(path)
            known = sha256(path)
            if identity_here(path) == before:
                self.remember(f"sha256 {path}", known, path)
        return known

    def save(self) -> None:
        """Write what was learned, on top of what others wrote meanwhile; where that cannot be, it is found out again."""
        if self._changed:
            merged = _read(self._path)
            merged.update({name: self._facts[name] for name in self._changed})
            with suppress(OSError):
                os.makedirs(os.path.dirname(self._path), mode=0o755, exist_ok=True)
                files.replace(self._path, json.dumps(merged, indent=1, sort_keys=True).encode())
            self._changed.clear()


def _read(path: str) -> dict[str, dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            facts = json.load(file)
    except (OSError, ValueError):
        return {}
    return {name: fact for name, fact in facts.items() if isinstance(fact, dict)} if isinstance(facts, dict) else {}
