"""Limits that the product writes to a cgroup of version 2 hold: what the kernel does to a process that wants more."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from rundctl.errors import HostError
from rundctl.host import cgroup_files, cgroup_settings
from rundctl.host.cgroup_settings import UNLIMITED, Limits

CONTROLLERS = ("cpu", "cpuset", "hugetlb", "io", "memory", "pids")
PYTHON = ["/usr/bin/python3", "-I", "-S", "-c"]


def hold(slot, **limits):
    """By the product's own writer, which finds out by itself that this is v2."""
    asked = Limits()
    for name, value in limits.items():
        setattr(asked, name, value)
    cgroup_settings.apply([str(slot.path)], asked)


def disk():
    return Path("/sys/block/vda/dev").read_text().strip()


def test_memory_and_no_swap(group, member):
    group.give("memory")
    slot = group.child("slot")
    hold(slot, memory=48 << 20, memory_swap=48 << 20, reservation=8 << 20)
    modest = member(slot, *PYTHON, "x = bytearray(16 << 20)")
    assert modest.process.wait(60) == 0
    greedy = member(slot, *PYTHON, "x = bytearray(64 << 20)", stderr=subprocess.DEVNULL)
    assert greedy.process.wait(60) == -signal.SIGKILL
    assert int(slot.read("memory.peak")) <= 48 << 20


def test_pids(group, member):
    group.give("pids")
    slot = group.child("slot")
    hold(slot, pids=3)
    code = "import os, time\ntry:\n  for _ in range(9): os.fork() or (time.sleep(1000), os._exit(0))\nexcept BlockingIOError: os._exit(7)"
    assert member(slot, *PYTHON, code).process.wait(60) == 7
    assert int(slot.read("pids.peak")) == 3
    assert slot.flat("pids.events")["max"] == 1


def test_cpu_quota(group, member):
    group.give("cpu")
    slot = group.child("slot")
    hold(slot, quota=20_000, period=100_000)
    busy = member(slot, *PYTHON, "while True: pass")
    before, started = slot.flat("cpu.stat")["usage_usec"], time.monotonic()
    time.sleep(2)  # an amount of time is what is measured
    used = slot.flat("cpu.stat")["usage_usec"] - before
    assert used / 1e6 / (time.monotonic() - started) < 0.4
    assert slot.flat("cpu.stat")["nr_throttled"] > 0
    busy.end()


def test_cpuset(group, member):
    group.give("cpuset")
    slot = group.child("slot")
    hold(slot, cpus="1", mems="0")
    inside = member(slot)
    status = Path(f"/proc/{inside.pid}/status").read_text()
    assert re.search(r"^Cpus_allowed_list:\s+1$", status, re.MULTILINE)


def test_io_of_a_disk(group, member):
    """4 MiB written past the cache at 1 MiB a second: not faster, by the controller's own account of it."""
    group.give("io")
    slot = group.child("slot")
    hold(slot, throttles={(disk(), "wbps"): 1 << 20})
    path = f"/var/tmp/io-{os.getpid()}"
    started = time.monotonic()
    try:
        argv = ["/bin/dd", "if=/dev/zero", f"of={path}", "bs=1M", "count=4", "oflag=direct"]
        assert member(slot, *argv, stderr=subprocess.DEVNULL).process.wait(60) == 0
    finally:
        Path(path).unlink()
    assert time.monotonic() - started > 2
    assert re.search(rf"^{disk()} .*wbytes=(\d+)", slot.read("io.stat"), re.MULTILINE)


def test_every_limit_is_in_the_file_that_is_meant(group):
    group.give(*CONTROLLERS)
    slot = group.child("slot")
    throttles = {(disk(), "rbps"): 1 << 20, (disk(), "riops"): 100}
    hold(
        slot, memory=64 << 20, memory_swap=64 << 20, reservation=16 << 20, shares=1024, quota=50_000, period=200_000, burst=10_000, cpus="0-1",
        mems="0", pids=7, throttles=throttles, hugepages={"2MB": 4 << 20}, unified={"memory.high": "33554432"},
    )  # fmt: skip
    expected = {
        "memory.max": str(64 << 20), "memory.low": str(16 << 20), "cpu.weight": "39", "cpu.max": "50000 200000",
        "cpu.max.burst": "10000", "cpuset.cpus": "0-1", "cpuset.mems": "0", "pids.max": "7", "hugetlb.2MB.max": str(4 << 20),
        "io.max": f"{disk()} rbps={1 << 20} wbps=max riops=100 wiops=max", "memory.high": "33554432",
    }  # fmt: skip
    assert {name: slot.read(name) for name in expected} == expected


def test_a_limit_can_be_taken_away(group):
    group.give("memory", "cpu", "pids")
    slot = group.child("slot")
    hold(slot, memory=64 << 20, quota=50_000, pids=7)
    hold(slot, memory=UNLIMITED, quota=UNLIMITED, pids=UNLIMITED)
    assert [slot.read(name).split()[0] for name in ("memory.max", "cpu.max", "pids.max")] == ["max"] * 3


def test_what_was_set_is_reset(group):
    """What a slot is scrubbed by: the table of defaults is the kernel's own."""
    group.give(*CONTROLLERS)
    fresh, used = group.child("fresh"), group.child("used")
    hold(
        used, memory=64 << 20, memory_swap=64 << 20, reservation=16 << 20, shares=7, quota=50_000, period=200_000, burst=10_000, idle=1,
        cpus="1", mems="0", pids=7, throttles={(disk(), "wbps"): 1 << 20},
    )  # fmt: skip
    cgroup_files.reset(str(used.path), is_v2=True)
    names = [file for _, file, _ in cgroup_files.table(is_v2=True) if (fresh.path / file).exists()]
    assert len(names) > 10
    assert {name: used.read(name) for name in names} == {name: fresh.read(name) for name in names}


def test_what_the_kernel_refuses_is_named_and_taken_back(group):
    group.give("memory", "cpuset")
    slot = group.child("slot")
    with pytest.raises(HostError, match=r"write '77' to .*/cpuset.cpus"):
        hold(slot, memory=64 << 20, cpus="77")
    assert slot.read("memory.max") == "max"


def test_a_missing_controller_is_named(group):
    with pytest.raises(HostError, match=r"the container's cgroup has no memory.limit_in_bytes nor memory.max"):
        hold(group.child("slot"), memory=64 << 20)
