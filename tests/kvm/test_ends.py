"""What ends or stands still: pause, and ``kill -9`` of rundctl, of a shim and of QEMU, while KVM runs the VM."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import psutil

from ..system.conftest import eventually
from ..system.steps import Stepper, some
from .conftest import qemu_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..system.conftest import Cli

SLEEP = ("/bin/sleep", "1000")
CLOCK_ERROR_S = 1  # busybox tells whole seconds
PAUSED_S = 3.0
STEPS = 3  # of create, of those at which it is killed


def _is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_pause(cli: Cli, bundle: Callable[..., Path], tmp_path: Path) -> None:
    """It stands still, and afterwards it knows what time it is."""
    out = tmp_path / "out"
    with out.open("wb") as stdout:
        cli.create("c", bundle("/bin/sh", "-c", "while :; do date +%s; done"), stdout=stdout)
    qemu = qemu_of(cli, "c")
    cli("start", "c")
    eventually(lambda: out.stat().st_size > 200, "it tells the time")
    cli("pause", "c")
    assert cli.status("c") == "paused"
    size, spent, began = out.stat().st_size, sum(qemu.cpu_times()[:2]), time.monotonic()
    time.sleep(PAUSED_S)  # what is measured is that nothing happens
    assert sum(qemu.cpu_times()[:2]) - spent < 0.1 * (time.monotonic() - began)
    assert out.stat().st_size <= size + 4096, "what was under way"
    resumed = time.time()
    cli("resume", "c")
    eventually(lambda: _last(out) > resumed, lambda: f"it tells the time: {_last(out)}, not {resumed}")
    assert _last(out) < time.time() + CLOCK_ERROR_S
    told = [int(line) for line in out.read_text().splitlines()[:-1]]
    assert told == sorted(told)
    cli("kill", "c", "KILL")
    cli.wait_status("c", "stopped")
    cli("delete", "c")


def _last(out: Path) -> int:
    return int(out.read_text().splitlines()[-2])  # the last one may be half a line


def test_kill_9_of_the_shim(cli: Cli, bundle: Callable[..., Path]) -> None:
    cli.create("c", bundle(*SLEEP))
    cli("start", "c")
    qemu = qemu_of(cli, "c")
    os.kill(cli.state("c")["pid"], signal.SIGKILL)
    cli.wait_status("c", "stopped")
    eventually(lambda: _is_gone(qemu), "QEMU ends with its shim")
    cli("delete", "c")


def test_kill_9_of_qemu(cli: Cli, bundle: Callable[..., Path]) -> None:
    cli.create("c", bundle(*SLEEP))
    cli("start", "c")
    qemu_of(cli, "c").kill()
    cli.wait_status("c", "stopped")
    record = (cli.root / "c/exit").read_text()
    assert "reason=qemu" in record
    assert "code=137" in record
    cli("delete", "c")


def test_kill_9_of_create(cli: Cli, bundle: Callable[..., Path], tmp_path: Path) -> None:
    """At some of its steps: what it leaves is removed, and the id is free again."""
    stepper = Stepper(cli, tmp_path)
    words = ("create", "--bundle", str(bundle(*SLEEP)), "c")
    assert stepper(0, signal.SIGKILL, *words) == 0
    qemu_of(cli, "c")
    cli("delete", "--force", "c")
    for step in some(stepper.told(), STEPS):
        assert stepper(step, signal.SIGKILL, *words) == -signal.SIGKILL, step
        cli("delete", "--force", "c")
        assert cli("list", "-q").stdout == b"", step
