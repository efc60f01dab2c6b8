"""``--pid-file``: there with the container, and gone with one that was not completed."""

from __future__ import annotations

from rundctl.errors import HostError, words
from rundctl.host import files
from rundctl.lean import os
from rundctl.lean.contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def write(path: str, pid: int) -> None:
    """Write a pid, without a newline, as runc does. HostError if it cannot be written."""
    try:
        files.replace(path, str(pid).encode(), durable=False)
    except OSError as error:
        raise HostError(f"write pid file {path}: {words(error)}") from error


def remove(path: str, pid: int) -> None:
    """Take back what was written; what somebody else has written there since stays. OSError if it cannot be removed."""
    if path and _holds(path, pid):
        files.unlink(path)


def remove_unfinished(record: Mapping[str, Any]) -> None:
    """What a ``create`` that was killed before it was complete has left, by its container's record."""
    path, shim = record.get("pid_file", ""), record.get("shim")
    if not path or not shim:
        return
    with suppress(OSError):  # its directory may be gone, or read-only by now
        remove(path, shim["pid"])
        files.unlink(files.temporary(path, record["creator"]["pid"]))


def _holds(path: str, pid: int) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.read(fd, 32) == str(pid).encode()
    finally:
        os.close(fd)
