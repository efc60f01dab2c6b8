"""Names of containers."""

from __future__ import annotations

from rundctl.errors import UsageError
from rundctl.types import ContainerId

_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")
ELSEWHERE, POOL = ".elsewhere", ".pool"
RESERVED = (ELSEWHERE, POOL)  # names in the default root that are no container's
_LENGTH = 255  # NAME_MAX: the id names a directory


def container_id(text: str) -> ContainerId:
    """Check an id by runc's rule, before it becomes part of a path; UsageError if it breaks it."""
    if not text:
        raise UsageError("container id cannot be empty")
    if text in (".", "..", *RESERVED) or not _CHARACTERS.issuperset(text):
        raise UsageError(f"invalid container ID format: {text!r}", hint="letters, digits and _ + - . are allowed")
    if len(text) > _LENGTH:
        raise UsageError(f"container ID is longer than {_LENGTH} characters: {text[:20]}...")
    return ContainerId(text)
