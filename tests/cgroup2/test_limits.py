"""Limits of version 2 hold: what the kernel does to a process that wants more."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

PYTHON = ["/usr/bin/python3", "-I", "-S", "-c"]


def test_memory_and_no_swap(group, member):
    group.give("memory")
    slot = group.child("slot")
    slot.write("memory.max", str(48 << 20))
    modest = member(slot, *PYTHON, "x = bytearray(16 << 20)")
    assert modest.process.wait(60) == 0
    greedy = member(slot, *PYTHON, "x = bytearray(64 << 20)", stderr=subprocess.DEVNULL)
    assert greedy.process.wait(60) == -signal.SIGKILL
    assert int(slot.read("memory.peak")) <= 48 << 20


def test_pids(group, member):
    group.give("pids")
    slot = group.child("slot")
    slot.write("pids.max", "3")
    code = "import os, time\ntry:\n  for _ in range(9): os.fork() or (time.sleep(1000), os._exit(0))\nexcept BlockingIOError: os._exit(7)"
    assert member(slot, *PYTHON, code).process.wait(60) == 7
    assert int(slot.read("pids.peak")) == 3
    assert slot.flat("pids.events")["max"] == 1


def test_cpu_quota(group, member):
    group.give("cpu")
    slot = group.child("slot")
    slot.write("cpu.max", "20000 100000")
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
    slot.write("cpuset.cpus", "1")
    inside = member(slot)
    status = Path(f"/proc/{inside.pid}/status").read_text()
    assert re.search(r"^Cpus_allowed_list:\s+1$", status, re.MULTILINE)


def test_io_of_a_disk(group, member):
    """4 MiB written past the cache at 1 MiB a second: not faster, by the controller's own account of it."""
    group.give("io")
    slot = group.child("slot")
    disk = Path("/sys/block/vda/dev").read_text().strip()
    slot.write("io.max", f"{disk} wbps={1 << 20}")
    path = f"/var/tmp/io-{os.getpid()}"
    started = time.monotonic()
    try:
        argv = ["/bin/dd", "if=/dev/zero", f"of={path}", "bs=1M", "count=4", "oflag=direct"]
        assert member(slot, *argv, stderr=subprocess.DEVNULL).process.wait(60) == 0
    finally:
        Path(path).unlink()
    assert time.monotonic() - started > 2
    assert re.search(rf"^{disk} .*wbytes=(\d+)", slot.read("io.stat"), re.MULTILINE)
