"""Answers that are dear to find, remembered beside the identity of what they were found from.

One JSON file holds digests of files and other facts; each is kept with the stat identities of its files, and is worth nothing once one differs.
The file is a cache: missing, damaged or lost to a concurrent writer, it costs time and nothing else. So it forgets: whenever it is written, what
is worth nothing goes, and of the rest the oldest beyond `MOST`, which is found out again if it is asked for.
"""

from __future__ import annotations

import time

from rundctl.host import files
from rundctl.host.manifest import identity_here
from rundctl.lean import json, os
from rundctl.lean.contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


MOST = 64  # answers; a start reads them all, and a host with several kernels, QEMUs and accelerators has twenty
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
    """The remembered answers of one file: ``recall`` is cheap, what ``digest`` and ``remember`` learned is written by ``save``. One serves a whole call."""

    __slots__ = ("_changed", "_facts", "_path")

    def __init__(self, path: str) -> None:
        self._path = path
        self._facts: dict[str, dict[str, Any]] = {}
        self._changed: set[str] = set()
        self._facts = _read(path)

    def recall(self, name: str, *paths: str) -> Any:
        """The answer remembered under ``name``, None if there is none or one of ``paths`` is not what it was."""
        entry = self._facts.get(name)
        if entry is None or entry.get("of") != _identities(paths):
            return None
        return entry.get("is")

    def recall_unchanged(self, name: str) -> Any:
        """The same for who does not know the files: the answer if all that it was found from are what they were."""
        entry = self._facts.get(name)
        return entry.get("is") if entry is not None and _is_current(entry) else None

    def remember(self, name: str, answer: Any, *paths: str) -> None:
        """Keep an answer found from ``paths`` as they are now."""
        self._facts[name] = {"of": _identities(paths), "is": answer, "since": int(time.time())}
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

    def refresh(self) -> None:
        """Learn what others have written since, under what was learned here."""
        self._facts = {**_read(self._path), **{name: self._facts[name] for name in self._changed}}

    def save(self) -> None:
        """Write what was learned, on top of what others wrote meanwhile; where that cannot be, it is found out again."""
        if self._changed:
            self.refresh()
            self._facts = _worth_keeping(self._facts)
            with suppress(OSError):
                os.makedirs(os.path.dirname(self._path), mode=0o755, exist_ok=True)
                files.replace(self._path, json.dumps(self._facts, indent=1, sort_keys=True).encode())
            self._changed.clear()


def of_home(home: str) -> Memo:
    """What is remembered of this host in RUNDCTL_HOME."""
    return Memo(f"{home}/digests.json")


def _identities(paths: Iterable[str]) -> list[list[Any]]:
    return [[path, identity_here(path)] for path in paths]


def _is_current(fact: dict[str, Any]) -> bool:
    """Whether all files that it was found from are there as they were."""
    return all(identity is not None and identity_here(path) == identity for path, identity in fact["of"])


def _worth_keeping(facts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Those whose files are there and unchanged, the `MOST` that were learned last. ``since`` is missing in files of older versions."""
    current = sorted(
        (name for name, fact in facts.items() if _is_current(fact)), key=lambda name: facts[name].get("since", 0)
    )
    return {name: facts[name] for name in current[-MOST:]}


def _read(path: str) -> dict[str, dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            facts = json.load(file)
    except (OSError, ValueError):
        return {}
    return {name: fact for name, fact in facts.items() if _is_well_formed(fact)} if isinstance(facts, dict) else {}


def _is_well_formed(fact: Any) -> bool:
    """Whether it is a fact as we write it: other versions of us write to the same file."""
    if not isinstance(fact, dict) or not isinstance(fact.get("of"), list) or not isinstance(fact.get("since", 0), int):
        return False
    return all(isinstance(each, list) and len(each) == len(("path", "identity")) for each in fact["of"])
