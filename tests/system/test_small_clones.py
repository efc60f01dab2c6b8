"""Clones are small and silent: as generous ratios; the figures are ``make bench-template``'s (docs/performance.md)."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Cli

pytestmark = pytest.mark.vm
CLONES = 20
QUIET_S = 12.0  # a start's own timers have run by then
WATCHED_S = 8.0


def _load_smaps() -> Any:
    path = Path(__file__).parents[2] / "bench/smaps.py"
    spec = importlib.util.spec_from_file_location("bench_smaps", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


smaps = _load_smaps()


class Clone:
    """A started container's processes on the host."""

    def __init__(self, cli: Cli, name: str, bundle: Path) -> None:
        cli.create(name, bundle)
        cli("start", name)
        self.shim = int(cli.state(name)["pid"])
        (qemu,) = Path(f"/proc/{self.shim}/task/{self.shim}/children").read_text().split()
        self.qemu = int(qemu)

    def of_files_kib(self, kind: str) -> int:
        """What QEMU holds of files and has not written: the template's memory, programs. ``kind``: Rss, or Pss, its share of that."""
        lines = Path(f"/proc/{self.qemu}/smaps_rollup").read_text().splitlines()[1:]
        found = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        return found[kind] - found["Anonymous"]

    def cpu_s(self) -> float:
        """So far, threads that have ended included."""
        ticks = 0
        for pid in (self.shim, self.qemu):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])  # utime and stime of proc(5)
        return ticks / os.sysconf("SC_CLK_TCK")


def _memory_of(clone: Clone) -> str:
    """The end of the path of the guest's memory file, as QEMU has it."""
    words = Path(f"/proc/{clone.qemu}/cmdline").read_bytes().decode().split("\0")
    (backend,) = [word for word in words if word.startswith("memory-backend-file")]
    return next(part for part in backend.split(",") if part.startswith("mem-path=")).removeprefix("mem-path=")


def test_twenty_clones_share_their_memory_and_stay_silent(cli: Cli, bundle: Callable[..., Path]) -> None:
    where = bundle("/bin/sleep", "1000")
    first = Clone(cli, "clone0", where)
    clones = [first, *(Clone(cli, f"clone{number}", where) for number in range(1, CLONES))]
    # Not what one alone holds: other VMs on this host may be of the same template and the same QEMU.
    one_kib, all_kib = first.of_files_kib("Rss"), sum(clone.of_files_kib("Pss") for clone in clones)
    assert one_kib > 10_000
    assert all_kib < 2 * one_kib, (all_kib, one_kib)
    time.sleep(QUIET_S)
    before, started = [clone.cpu_s() for clone in clones], time.monotonic()
    time.sleep(WATCHED_S)
    used_s = sum(clone.cpu_s() for clone in clones) - sum(before)
    # A hundred of them at most 5 % of a core; three times that here, because neighbours on this host slow every wake-up.
    assert used_s / (time.monotonic() - started) < 0.15 * CLONES / 100, used_s


def test_a_clone_dirties_a_small_part_of_its_memory(cli: Cli, bundle: Callable[..., Path]) -> None:
    clone = Clone(cli, "small", bundle("/bin/sleep", "1000"))
    path = _memory_of(clone)
    parts = smaps.breakdown_kib(clone.qemu, path)
    memory_kib = Path(path).stat().st_size >> 10
    assert 0 < parts["guest, dirtied"] < memory_kib / 12, parts
    assert parts["guest, shared"] > parts["guest, dirtied"], parts
    # The breakdown leaves nothing out, within what changed between the two looks.
    assert abs(sum(parts.values()) - smaps.pss_kib(clone.qemu)) < smaps.pss_kib(clone.qemu) / 20, parts


def test_no_huge_pages_in_a_clone(cli: Cli, bundle: Callable[..., Path]) -> None:
    clone = Clone(cli, "pages", bundle("/bin/sleep", "1000"))
    rollup = Path(f"/proc/{clone.qemu}/smaps_rollup").read_text().splitlines()
    huge = {line.split(":")[0]: int(line.split()[1]) for line in rollup if line.startswith("AnonHugePages")}
    assert huge == {"AnonHugePages": 0}


def test_the_clock_was_calibrated_before_the_snapshot(sh: Callable[..., Any]) -> None:
    directory = "/sys/devices/system/clocksource/clocksource0"
    words = sh(f"cat {directory}/available_clocksource {directory}/current_clocksource").stdout.decode().splitlines()
    assert "tsc-early" not in words[0].split()
    assert words[1] == words[0].split()[0], json.dumps(words)
