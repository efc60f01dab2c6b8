"""Processes as ps(1) prints them, procps' widths and words; what a container has put into a name reaches no terminal as it is."""

from __future__ import annotations

import time

from rundctl.errors import UsageError, printable
from rundctl.guest.processes import TICKS_PER_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rundctl.engine.container.processes import Listing
    from rundctl.guest.processes import Process

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400
_KIB = 1024
_PTS_MAJORS = range(136, 144)  # devices.txt of the kernel: 256 terminals each
_C_MAX = 99  # two characters


class Column:
    """A column: its headline, width, the side it is aligned to, and what is in it."""

    __slots__ = ("cell", "head", "right", "width")

    def __init__(
        self, head: str, width: int, cell: Callable[[Process, Listing], object], *, right: bool = True
    ) -> None:
        self.head = head
        self.width = width
        self.cell = cell
        self.right = right

    def text(self, content: str) -> str:
        """A cell; it may be wider than its column, as in ps."""
        return content.rjust(self.width) if self.right else content.ljust(self.width)


def columns_of(options: Sequence[str]) -> list[Column]:
    """The columns that ps' options ask for. UsageError for what there is not."""
    wanted: list[str] = []
    words = list(options)
    full = not words
    while words:
        word = words.pop(0)
        if word[:1] != "-" or word == "-":
            raise _unknown(word)
        letters, marker, attached = word[1:].partition("o")
        if not set(letters) <= set("eAf"):
            raise _unknown(word)
        full = full or "f" in letters
        if marker:
            if not attached and not words:
                raise UsageError("ps: -o requires a list of columns", hint=_hint())
            wanted += (attached or words.pop(0)).replace(",", " ").split()
    if not wanted:
        return [COLUMNS[name] for name in (_FULL if full else _SHORT)]
    unknown = [name for name in wanted if name not in COLUMNS or ":" in name]
    if unknown:
        raise UsageError(f"ps: there is no column {unknown[0]!r}", hint=_hint())
    return [COLUMNS[name] for name in wanted]


def table(columns: Sequence[Column], listing: Listing) -> str:
    """A headline and a line a process."""
    rows = [[column.head for column in columns]]
    rows += [[printable(str(column.cell(process, listing))) for column in columns] for process in listing.processes]
    lines = (" ".join(column.text(cell) for column, cell in zip(columns, row, strict=True)).rstrip() for row in rows)
    return "".join(f"{line}\n" for line in lines)


def _decode(name: bytes) -> str:
    return name.decode("utf-8", "replace").replace("\ufffd", "?")


def _command(process: Process, _: Listing) -> str:
    words = process.arguments.rstrip(b"\0")
    if process.state == b"Z":
        return f"[{_decode(process.name)}] <defunct>"
    return _decode(words.replace(b"\0", b" ")) if words else f"[{_decode(process.name)}]"


def _user(process: Process, _: Listing) -> str:
    """Others than root are numbers: their names are the image's."""
    return "?" if process.uid is None else "root" if process.uid == 0 else str(process.uid)


def _elapsed_s(process: Process, listing: Listing) -> int:
    return max(0, listing.uptime_ticks - process.start_ticks) // TICKS_PER_S


def _percent(process: Process, listing: Listing) -> float:
    """Of the time that it has lived."""
    lived = listing.uptime_ticks - process.start_ticks
    return 100.0 * process.cpu_ticks / lived if lived > 0 else 0.0


def _started(process: Process, listing: Listing) -> str:
    """As procps: the time today, else the day, else the year."""
    now = time.localtime(listing.asked_at_s)
    then = time.localtime(listing.asked_at_s - min(_elapsed_s(process, listing), listing.asked_at_s))
    if then[:3] == now[:3]:
        return time.strftime("%H:%M", then)
    return time.strftime("%b%d" if then.tm_year == now.tm_year else "%Y", then)


def _terminal(process: Process, _: Listing) -> str:
    major, minor = process.terminal >> 8 & 0xFFF, process.terminal & 0xFF | process.terminal >> 12 & 0xFFF00
    if major in _PTS_MAJORS:
        return f"pts/{(major - _PTS_MAJORS[0]) * 256 + minor}"
    return "?" if process.terminal <= 0 else f"{major}:{minor}"


def _clock(seconds: int) -> str:
    days, rest = divmod(seconds, _DAY_S)
    text = f"{rest // _HOUR_S:02}:{rest % _HOUR_S // _MINUTE_S:02}:{rest % _MINUTE_S:02}"
    return f"{days}-{text}" if days else text


def _cpu_time(process: Process, _: Listing) -> str:
    return _clock(process.cpu_ticks // TICKS_PER_S)


def _lived(process: Process, listing: Listing) -> str:
    seconds = _elapsed_s(process, listing)
    return _clock(seconds).removeprefix("00:") if seconds < _HOUR_S else _clock(seconds)


def _state(process: Process, _: Listing) -> str:
    return _decode(process.state)


_PID = Column("PID", 5, lambda process, _: process.pid)
_USER = Column("USER", 8, _user, right=False)
_NAME = Column("COMMAND", 15, lambda process, _: _decode(process.name), right=False)
_ARGUMENTS = Column("COMMAND", 27, _command, right=False)
_TIME = Column("TIME", 8, _cpu_time)
_PERCENT = Column("%CPU", 4, lambda process, listing: f"{_percent(process, listing):.1f}")
_TTY = Column("TT", 8, _terminal, right=False)
_S = Column("S", 1, _state, right=False)
COLUMNS = {
    "pid": _PID,
    "ppid": Column("PPID", 5, lambda process, _: process.parent),
    "uid": Column("UID", 5, lambda process, _: "?" if process.uid is None else process.uid),
    "user": _USER,
    "c": Column("C", 2, lambda process, listing: min(_C_MAX, int(_percent(process, listing)))),
    "pcpu": _PERCENT,
    "%cpu": _PERCENT,
    "stime": Column("STIME", 5, _started, right=False),
    "tty": _TTY,
    "tt": _TTY,
    "time": _TIME,
    "etime": Column("ELAPSED", 11, _lived),
    "etimes": Column("ELAPSED", 7, _elapsed_s),
    "s": _S,
    "state": _S,
    "nlwp": Column("NLWP", 4, lambda process, _: process.threads),
    "ni": Column("NI", 3, lambda process, _: process.nice),
    "vsz": Column("VSZ", 6, lambda process, _: process.virtual // _KIB),
    "rss": Column("RSS", 5, lambda process, _: process.rss // _KIB),
    "comm": _NAME,
    "args": _ARGUMENTS,
    "cmd": Column("CMD", 27, _command, right=False),
    "command": _ARGUMENTS,
    # The headlines of the two tables without -o.
    "f:user": Column("UID", 8, _user, right=False),
    "f:tty": Column("TTY", 8, _terminal, right=False),
    "f:name": Column("CMD", 15, lambda process, _: _decode(process.name), right=False),
}
_FULL = ("f:user", "pid", "ppid", "c", "stime", "f:tty", "time", "cmd")
_SHORT = ("pid", "f:tty", "time", "f:name")


def _hint() -> str:
    names = ",".join(name for name in COLUMNS if ":" not in name)
    return f"known are -e, -A, -f and -o with {names}"


def _unknown(word: str) -> UsageError:
    return UsageError(f"ps: a virtual machine cannot answer ps's option {word!r}", hint=_hint())
