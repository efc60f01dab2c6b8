"""``ps``: what a guest tells of its processes, its lies included, and the table of it."""

from __future__ import annotations

import struct
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rundctl.commands import ps_table
from rundctl.engine.container.processes import Listing, collect
from rundctl.errors import GuestError, UsageError
from rundctl.guest import processes, wire

NOON = time.mktime((2026, 11, 25, 12, 0, 0, 0, 0, -1))
UPTIME_TICKS = 3600 * 100


def stat(pid: int = 7, name: bytes = b"sleep", **fields: int) -> bytes:
    names = [
        "ppid",
        "pgrp",
        "session",
        "tty",
        "tpgid",
        "flags",
        "minflt",
        "cminflt",
        "majflt",
        "cmajflt",
        "utime",
        "stime",
        "cutime",
        "cstime",
        "priority",
        "nice",
        "threads",
        "itreal",
        "start",
        "vsize",
        "rss",
    ]
    values = dict.fromkeys(names, 0) | {"tpgid": -1, "threads": 1} | fields
    return b"%d (%s) S %s 18446744073709551615 0 0" % (pid, name, b" ".join(b"%d" % values[field] for field in names))


def record(
    stat_text: bytes, ids: bytes = b"Uid:\t0\t0\t0\t0\nNSpid:\t7\t1\n", arguments: bytes = b"sleep\x001000\0"
) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in (stat_text, ids, arguments))


def answer(*records: bytes, following: int = 0, count: int | None = None, uptime_ns: int = 3600 * 10**9) -> wire.Result:
    number = len(records) if count is None else count
    return wire.Result(0, number, struct.pack("<QQ", following, uptime_ns) + b"".join(records))


def listing(*records: bytes) -> Listing:
    page = processes.unpack(answer(*records))
    return Listing(processes.number(page.processes), page.uptime_ticks, NOON)


def shown(found: Listing, *options: str) -> list[str]:
    return ps_table.table(ps_table.columns_of(options), found).splitlines()


# What came


def test_numbers_are_the_container_s() -> None:
    found = listing(
        record(stat(60, ppid=57), b"Uid:\t1\t2\t3\t4\nNSpid:\t60\t4\n"),
        record(stat(57, ppid=1), b"Uid:\t0\t0\t0\t0\nNSpid:\t57\t1\n"),
        record(stat(70, ppid=60), b"Uid:\t0\t0\t0\t0\nNSpid:\t70\t9\t1\n"),
    ).processes
    assert [(process.pid, process.parent, process.uid) for process in found] == [(1, 0, 0), (4, 1, 2), (9, 4, 0)]


def test_without_a_pid_namespace_they_are_the_guest_s() -> None:
    found = listing(record(stat(60, ppid=57), b"NSpid:\t60\t1\n"), record(stat(57, ppid=1), b"NSpid:\t57\n")).processes
    assert [(process.pid, process.parent) for process in found] == [(57, 0), (60, 57)]


@pytest.mark.parametrize("name", [b"a b", b"a) S 1 (b", b"((", b"))", b"\xff\n\t", b""])
def test_any_name_is_one(name: bytes) -> None:
    (process,) = listing(record(stat(name=name, utime=5))).processes
    assert (process.name, process.cpu_ticks) == (name, 5)


@pytest.mark.parametrize(
    "text",
    [b"", b"7", b"7 (x", b"7 (x) S", b"x (x) S " + b"1 " * 30, b"7 (x) S 1 2 3", b"7 (x) S " + b"9" * 30 + b" 1" * 30],
)
def test_a_stat_that_is_none_is_left_out(text: bytes) -> None:
    assert listing(record(text), record(stat())).processes[0].name == b"sleep"


@pytest.mark.parametrize("ids", [b"", b"Uid:", b"Uid:\tx\ty\n", b"NSpid:\tx\n", b"\0\xff\n" * 9])
def test_ids_that_are_none(ids: bytes) -> None:
    (process,) = listing(record(stat(7), ids)).processes
    assert (process.pid, process.uid) == (7, None)
    assert shown(Listing([process], 0, NOON), "-o", "user,uid,pid")[1].split() == ["?", "?", "7"]


@pytest.mark.parametrize(
    "result",
    [
        wire.Result(0, 0, b""), wire.Result(0, 1, bytes(16)), wire.Result(0, 2**32 - 1, bytes(100)), answer(record(stat()), count=2),
        answer(record(stat()), count=0), answer(following=5), wire.Result(0, 1, bytes(16) + struct.pack("<I", 2**32 - 1) + bytes(50)),
        answer(record(stat())[:-1]),
    ],
)  # fmt: skip
def test_an_answer_that_lies_about_itself(result: wire.Result) -> None:
    with pytest.raises(GuestError, match="protocol violation"):
        processes.unpack(result)


@given(st.integers(0, 4), st.binary(max_size=300))
def test_any_answer_is_processes_or_an_error(count: int, data: bytes) -> None:
    try:
        found = processes.unpack(wire.Result(0, count, data))
    except GuestError:
        return
    assert len(found.processes) <= count


# Page after page


class Pages:
    """A guest with so many processes; it tells a few at a time, as an agent does."""

    def __init__(self, count: int, at_a_time: int, *, endless: bool = False) -> None:
        self.count = count
        self.at_a_time = at_a_time
        self.endless = endless

    def ask(self, kind: int, payload: bytes) -> wire.Result:
        assert kind == wire.PROCESSES
        (place,) = struct.unpack("<Q", payload)
        last = min(place + self.at_a_time, self.count)
        records = [
            record(stat(100 + pid, ppid=100), b"NSpid:\t%d\t%d\n" % (100 + pid, pid + 1)) for pid in range(place, last)
        ]
        return answer(*records, following=1 if self.endless else last if last < self.count else 0)


def test_ten_thousand_processes() -> None:
    guest: Any = Pages(10_000, 60)
    found = collect(guest, time.monotonic() + 60)
    assert [process.pid for process in found.processes] == list(range(1, 10_001))
    assert len(shown(found)) == 10_001


def test_a_list_without_end() -> None:
    guest: Any = Pages(10, 5, endless=True)
    with pytest.raises(GuestError, match="has no end"):
        collect(guest, time.monotonic() + 0.2)


class Heavy:
    """A guest whose processes have all the arguments that a message holds."""

    asked = 0

    def ask(self, kind: int, payload: bytes) -> wire.Result:
        del kind, payload
        self.asked += 1
        return answer(record(stat(self.asked), b"", b"x" * (4 << 20)), following=1)


def test_a_list_without_end_costs_the_host_little() -> None:
    guest: Any = Heavy()
    with pytest.raises(GuestError, match="has no end"):
        collect(guest, time.monotonic() + 3600)


# The table


def test_the_table_is_ps_s() -> None:
    found = listing(
        record(
            stat(57, utime=6100, stime=100, start=UPTIME_TICKS - 30 * 60 * 100, tty=0x8801),
            b"Uid:\t0\t0\t0\t0\nNSpid:\t57\t1\n",
        ),
        record(stat(58, ppid=57), b"Uid:\t5\t1000\t5\t5\nNSpid:\t58\t12345\n", b""),
    )
    assert shown(found) == [
        "UID        PID  PPID  C STIME TTY          TIME CMD",
        "root         1     0  3 11:30 pts/1    00:01:02 sleep 1000",
        "1000     12345     1  0 11:00 ?        00:00:00 [sleep]",
    ]
    assert shown(found, "-ef") == shown(found, "-e", "-f") == shown(found, "-f") == shown(found)
    assert shown(found, "-e") == [
        "  PID TTY          TIME CMD",
        "    1 pts/1    00:01:02 sleep",
        "12345 ?        00:00:00 sleep",
    ]


def test_chosen_columns() -> None:
    found = listing(record(stat(57, utime=18_000, start=0, vsize=4096, rss=3, threads=5, nice=-5)))
    expected = ["PID COMMAND", "1 sleep"]
    for options in (
        ("-o", "pid,comm"),
        ("-opid,comm"[:2], "pid,comm"),
        ("-eo", "pid comm"),
        ("-o", "pid", "-o", "comm"),
        ("-opid,comm",),
    ):
        assert [" ".join(line.split()) for line in shown(found, *options)] == expected
    line = shown(found, "-o", "vsz,rss,nlwp,ni,s,etime,etimes,pcpu,c,args")[1]
    assert line.split() == ["4", "12", "5", "-5", "S", "01:00:00", "3600", "5.0", "5", "sleep", "1000"]


def test_all_columns_take_any_process() -> None:
    huge = 2**63 - 1
    odd = [
        stat(utime=huge, stime=huge, start=huge, vsize=huge, rss=huge, tty=-1, threads=-1, nice=-huge),
        stat(utime=-5, start=-huge, tty=huge),
    ]
    names = ",".join(name for name in ps_table.COLUMNS if ":" not in name)
    for text in odd:
        assert len(shown(listing(record(text)), "-o", names)) == 2
        assert len(shown(listing(record(text)))) == 2


@pytest.mark.parametrize(
    "options", [("aux",), ("-z",), ("-",), ("-o",), ("-o", "nonsense"), ("-o", "f:tty"), ("--forest",), ("-o", "pid=")]
)
def test_what_ps_cannot_here(options: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        ps_table.columns_of(options)
    assert "-o" in caught.value.hint


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_no_name_leaves_its_line_or_moves_the_cursor(name: bytes, arguments: bytes) -> None:
    lines = ps_table.table(
        ps_table.columns_of(["-o", "comm,args"]), listing(record(stat(name=name), arguments=arguments))
    )
    assert lines.count("\n") == 2
    assert all(character.isprintable() for line in lines.split("\n") for character in line)


@pytest.mark.parametrize("hostile", ["\x1b[2J", "\u202e", "a\nb", "\x9b", "\r"])
def test_hostile_names(hostile: str) -> None:
    (_, line) = shown(listing(record(stat(name=hostile.encode()[:15]), arguments=hostile.encode())), "-o", "comm,args")
    assert "?" in line


def test_nothing_is_a_headline() -> None:
    assert shown(Listing([], 0, NOON)) == ["UID        PID  PPID  C STIME TTY          TIME CMD"]
