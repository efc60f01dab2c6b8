"""The two places words go to: stderr for people, the ``--log`` file for callers.

podman and containerd read the last line of the file as ``{"level", "msg", "time"}``; as text it has logrus' shape, as runc's has.
"""

from __future__ import annotations

import sys
import time

from rundctl.errors import HostError, printable
from rundctl.lean import os


class Log:
    """Says errors, and with ``debug`` on also what is done: each a line of plain characters, whoever has written the words in it."""

    __slots__ = ("_as_json", "_fd", "verbose")

    def __init__(self, path: str, format_: str, *, verbose: bool) -> None:
        """HostError if the file cannot be opened."""
        self._fd = _open(path) if path else -1
        self._as_json = format_ == "json"
        self.verbose = verbose

    def error(self, message: str) -> None:
        """One line on stderr, one in the file. A full disk must not hide the error itself: stderr comes first."""
        message = _line(message)
        _say(f"rundctl: {message}")
        if self._fd >= 0:
            self._append("error", message)

    def info(self, message: str) -> None:
        """What was asked for, such as ``--timings``: one line on stderr, one in the file."""
        message = _line(message)
        _say(f"rundctl: {message}")
        if self._fd >= 0:
            self._append("info", message)

    def warn(self, message: str) -> None:
        """What went wrong beside what was asked for, which was done: one line on stderr, one in the file."""
        message = _line(message)
        _say(f"rundctl: warning: {message}")
        if self._fd >= 0:
            self._append("warning", message)

    def debug(self, message: str) -> None:
        """One line in the file, or on stderr if there is none; nothing without ``--debug``."""
        if not self.verbose:
            return
        message = _line(message)
        if self._fd >= 0:
            self._append("debug", message)
        else:
            _say(f"rundctl: debug: {message}")

    def _append(self, level: str, message: str) -> None:
        line = _json_line(level, message) if self._as_json else _text_line(level, message)
        try:
            os.write(self._fd, line.encode("utf-8", "backslashreplace"))
        except OSError as error:
            _say(f"rundctl: cannot write the log: {(error.strerror or str(error)).lower()}")


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise HostError(f"open log {path}: {(error.strerror or str(error)).lower()}") from error


def _now() -> str:
    """RFC 3339 in UTC, which every reader of the log parses."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _json_line(level: str, message: str) -> str:
    import json  # brings `re` along: 5 ms, which only failures pay

    return json.dumps({"level": level, "msg": message, "time": _now()}) + "\n"


def _text_line(level: str, message: str) -> str:
    import json

    return f'time="{_now()}" level={level} msg={json.dumps(message, ensure_ascii=False)}\n'


def _line(message: str) -> str:
    """Lines are joined: callers take the first or the last."""
    return printable(message.rstrip().replace("\n", "; "))


def _say(line: str) -> None:
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return  # stderr is closed or full: there is nobody left to tell
