"""Processes of a container as its agent tells of them (native/PROTOCOL.md, PROCESSES; proc_pid_stat(5), proc_pid_status(5)). Pure.

Numbers, lengths and names are the guest's, which may lie: what cannot be read is left out, and nothing is longer than what came.
"""

from __future__ import annotations

import struct

from rundctl.errors import GuestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from rundctl.guest.wire import Result

TICKS_PER_S = 100  # USER_HZ of x86
PAGE_SIZE = 4096
_HEAD = struct.Struct("<QQ")
_LENGTH = struct.Struct("<I")
_FIELDS = 22  # of stat, after the name
_DIGITS = 19  # of 2^63 - 1


class Process:
    """One process: numbers as the container sees them, times in ticks since the guest's boot, sizes in bytes."""

    __slots__ = (
        "arguments", "cpu_ticks", "guest_parent", "name", "nice", "number_by_namespace", "parent", "pid", "rss", "start_ticks", "state", "terminal",
        "threads", "uid", "virtual",
    )  # fmt: skip

    def __init__(self, name: bytes, fields: list[int], state: bytes, ids: bytes, arguments: bytes) -> None:
        self.name = name
        self.state = state
        self.guest_parent = fields[1]
        self.terminal = fields[4]
        self.cpu_ticks = fields[11] + fields[12]
        self.nice = fields[16]
        self.threads = fields[17]
        self.start_ticks = fields[19]
        self.virtual = fields[20]
        self.rss = fields[21] * PAGE_SIZE
        lines = dict(line.partition(b":\t")[::2] for line in ids.splitlines())
        uids = lines.get(b"Uid", b"").split(b"\t")
        self.uid = _number(uids[1]) if len(uids) > 1 else None  # the effective one, as ps has it
        numbers = [_number(number) for number in lines.get(b"NSpid", b"").split(b"\t")]
        self.number_by_namespace = [number for number in numbers if number is not None] or [fields[0]]
        self.arguments = arguments
        self.pid = self.parent = 0


class Page:
    """An answer: some processes, where the next begins (0: there is none), and what the guest's clock says."""

    __slots__ = ("following", "processes", "uptime_ticks")

    def __init__(self, processes: list[Process], following: int, uptime_ticks: int) -> None:
        self.processes = processes
        self.following = following
        self.uptime_ticks = uptime_ticks


def request(place: int) -> bytes:
    """Payload of PROCESSES."""
    return struct.pack("<Q", place)


def unpack(result: Result) -> Page:
    """What an answer to PROCESSES holds. GuestError if it is none."""
    data = result.data
    if len(data) < _HEAD.size:
        raise GuestError("protocol violation: the guest's answer makes no sense")
    following, uptime_ns = _HEAD.unpack_from(data)
    offset = _HEAD.size
    found: list[Process] = []
    for _ in range(min(result.index, len(data))):
        strings = []
        for _ in range(3):
            string = _string(data, offset)
            strings.append(string)
            offset += _LENGTH.size + len(string)
        process = _parse(*strings)
        if process is not None:
            found.append(process)
    if offset != len(data) or (following and not result.index):
        raise GuestError("protocol violation: the guest's answer makes no sense")
    return Page(found, following, uptime_ns * TICKS_PER_S // 10**9)


def number(processes: Iterable[Process]) -> list[Process]:
    """Give all processes of a container the numbers that they have in its PID namespace, or in the guest's if it has none; in their order.

    A process of a namespace further down has more numbers than the container's first one, which has the fewest.
    """
    processes = list(processes)
    level = min((len(process.number_by_namespace) for process in processes), default=1) - 1
    level = min(level, 1)
    pids = {process.number_by_namespace[0]: process.number_by_namespace[level] for process in processes}
    for process in processes:
        process.pid = process.number_by_namespace[level]
        process.parent = pids.get(process.guest_parent, 0)
    return sorted(processes, key=lambda process: process.pid)


def _string(data: bytes, offset: int) -> bytes:
    size = _LENGTH.unpack_from(data, offset)[0] if len(data) - offset >= _LENGTH.size else len(data)
    if size > len(data) - offset - _LENGTH.size:
        raise GuestError("protocol violation: the guest's answer makes no sense")
    return data[offset + _LENGTH.size : offset + _LENGTH.size + size]


def _parse(stat: bytes, ids: bytes, arguments: bytes) -> Process | None:
    """``7 (a name) S 1 ...``: the name may itself hold blanks and parentheses."""
    before, _, rest = stat.rpartition(b")")
    first, _, name = before.partition(b"(")
    state, *texts = rest.split()[: _FIELDS + 1] or [b""]
    fields = [_number(text) for text in [first.strip(), *texts[: _FIELDS - 1]]]
    numbers = [field for field in fields if field is not None]
    if len(state) != 1 or len(numbers) != _FIELDS or len(fields) != _FIELDS:
        return None
    return Process(name, numbers, state, ids, arguments)


def _number(text: bytes) -> int | None:
    digits = text.removeprefix(b"-")
    return int(text) if digits.isdigit() and len(digits) <= _DIGITS else None
