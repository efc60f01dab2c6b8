"""The guest's cgroup files in runc's JSON; and nothing that a guest may say is more than a wrong figure."""

from __future__ import annotations

import json
import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rundctl.engine.container import figures
from rundctl.engine.container.guest import unpack_files
from rundctl.errors import GuestError
from rundctl.guest import wire
from rundctl.host import cgroup_files

FILES = {
    "cpu.stat": b"usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 3\nnr_throttled 2\nthrottled_usec 7\n",
    "cpuset.cpus.effective": b"0-1,3\n",
    "cpuset.mems.effective": b"0\n",
    "memory.current": b"4096\n",
    "memory.max": b"65536\n",
    "memory.peak": b"8192\n",
    "memory.stat": b"anon 1024\nfile 2048\nkernel 512\nsock 0\n",
    "memory.events": b"low 0\nhigh 0\nmax 4\noom 2\noom_kill 1\noom_group_kill 0\n",
    "pids.current": b"2\n",
    "pids.max": b"max\n",
    "io.stat": b"254:0 rbytes=10 wbytes=20 rios=1 wios=0 dbytes=0 dios=0\n",
    "hugetlb.2MB.current": b"0\n",
    "hugetlb.2MB.events": b"max 5\n",
}
NUMBERS = int | None


def test_all_of_it() -> None:
    memory = {"limit": 65536, "usage": 4096, "max": 8192, "failcnt": 4}
    assert figures.translate(FILES) == {
        "cpu": {
            "usage": {"total": 1_500_000, "kernel": 500_000, "user": 1_000_000},
            "throttling": {"periods": 3, "throttledPeriods": 2, "throttledTime": 7000},
        },
        "cpuset": {
            "cpus": [0, 1, 3], "cpu_exclusive": 0, "mems": [0], "mem_hardwall": 0, "mem_exclusive": 0, "memory_migrate": 0, "memory_spread_page": 0,
            "memory_spread_slab": 0, "memory_pressure": 0, "sched_load_balance": 0, "sched_relax_domain_level": 0,
        },
        "memory": {
            "cache": 2048,
            "usage": memory,
            "swap": {"limit": 65536, "usage": 4096, "failcnt": 0},
            "kernel": {"limit": 0, "usage": 512, "failcnt": 0},
            "kernelTCP": {"limit": 0, "failcnt": 0},
            "raw": {"anon": 1024, "file": 2048, "kernel": 512, "sock": 0},
        },
        "pids": {"current": 2},
        "blkio": {
            "ioServiceBytesRecursive": [
                {"major": 254, "op": "Read", "value": 10}, {"major": 254, "op": "Write", "value": 20},
            ],
            "ioServicedRecursive": [{"major": 254, "op": "Read", "value": 1}, {"major": 254, "op": "Write"}],
        },
        "hugetlb": {"2MB": {"failcnt": 5}},
        "intel_rdt": {},
        "network_interfaces": None,
    }  # fmt: skip
    assert figures.oom_kills(FILES) == 1


def test_what_is_unlimited_and_what_is_missing() -> None:
    data = figures.translate(
        {"memory.max": b"max\n", "memory.swap.max": b"max\n", "pids.max": b"7\n", "pids.current": b"0\n"}
    )
    assert data["memory"]["usage"] == {"limit": 2**64 - 1, "failcnt": 0}
    assert data["memory"]["swap"] == {"limit": 2**64 - 1, "failcnt": 0}
    assert data["pids"] == {"limit": 7}
    empty = figures.translate({})
    assert empty["memory"]["usage"] == {"limit": 2**64 - 1, "failcnt": 0}
    assert (empty["pids"], empty["blkio"], empty["hugetlb"]) == ({}, {}, {})
    assert "raw" not in empty["memory"]
    assert figures.oom_kills({}) == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"5\n", 5), (b" 5 ", 5), (b"0", 0), (b"18446744073709551615", 2**64 - 1), (b"18446744073709551616", None), (b"9" * 5000, None),
        (b"max", None), (b"", None), (b"-1", None), (b"1.5", None), (b"0x10", None), ("٣".encode(), None), (b"\xff\xfe", None), (b"1_000", None),
        (b"5\x00", None),
    ],
)  # fmt: skip
def test_a_number(text: bytes, value: NUMBERS) -> None:
    assert cgroup_files.number(text.decode("ascii", "replace")) == value


def test_a_flood_is_cut_off() -> None:
    flood = {
        "memory.stat": b"".join(b"key%d 1\n" % key for key in range(5000)),
        "cpuset.cpus.effective": b"0-4000000000,1," + b"2," * 100_000,
        "io.stat": b"1:2 rbytes=1\n" * 5000,
    }
    data = figures.translate(flood)
    assert len(data["memory"]["raw"]) == 256
    assert len(data["cpuset"]["cpus"]) <= 4096
    assert len(data["blkio"]["ioServiceBytesRecursive"]) == 256


@given(st.dictionaries(st.sampled_from(figures.FILES), st.binary(max_size=300)))
def test_any_bytes_become_json_of_the_same_shape(files: dict[str, bytes]) -> None:
    _check_shape(figures.translate(files), files)


@given(st.dictionaries(st.sampled_from(figures.FILES), st.text("0123456789max= :-,\nrbytesusage_usec", max_size=200)))
def test_nearly_right_bytes_become_json_of_the_same_shape(files: dict[str, str]) -> None:
    as_bytes = {name: text.encode() for name, text in files.items()}
    _check_shape(figures.translate(as_bytes), as_bytes)


def _check_shape(data: dict[str, Any], files: dict[str, bytes]) -> None:
    assert json.loads(json.dumps(data)) == data
    assert list(data) == ["cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "intel_rdt", "network_interfaces"]
    assert all(0 <= value < 2**64 for value in _numbers(data))
    assert 0 <= figures.oom_kills(files) < 2**64


def _numbers(data: Any) -> list[int]:
    if isinstance(data, dict):
        return [number for value in data.values() for number in _numbers(value)]
    if isinstance(data, list):
        return [number for value in data for number in _numbers(value)]
    return [data] if isinstance(data, int) else []


def test_ranges_that_overlap_cost_no_more_than_what_is_kept() -> None:
    tracemalloc.start()
    try:
        data = figures.translate({"cpuset.cpus.effective": b",".join([b"0-4095"] * 4096)})
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert data["cpuset"]["cpus"] == list(range(4096))
    assert most < 4 << 20


# The answer's framing


def _answer(*files: tuple[int, bytes]) -> bytes:
    return b"".join(struct.pack("<iI", error, len(content)) + content for error, content in files)


def test_files_of_an_answer() -> None:
    result = wire.Result(0, 3, _answer((0, b"one"), (2, b""), (0, b"")))
    assert unpack_files(("a", "b", "c"), result) == {"a": b"one", "c": b""}


@pytest.mark.parametrize(
    ("count", "data"),
    [
        (2, b""), (2, _answer((0, b"x"))), (1, _answer((0, b"x"), (0, b"y"))), (2, _answer((0, b"x"), (0, b"y")) + b"z"),
        (2, _answer((0, b"x")) + struct.pack("<iI", 0, 2**32 - 1)), (2**32 - 1, b"x" * 100), (2, b"\0" * 15),
    ],
)  # fmt: skip
def test_an_answer_that_lies_about_itself(count: int, data: bytes) -> None:
    with pytest.raises(GuestError, match="protocol violation"):
        unpack_files(("a", "b"), wire.Result(0, count, data))


@given(st.integers(0, 5), st.binary(max_size=100))
def test_any_answer_is_files_or_an_error(count: int, data: bytes) -> None:
    try:
        found = unpack_files(("a", "b"), wire.Result(0, count, data))
    except GuestError:
        return
    assert sum(map(len, found.values())) <= len(data)
