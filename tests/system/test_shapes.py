"""A container's limits decide how large its VM is, and hold inside it."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from .conftest import DEADLINE_S, RUNDCTL, Cli, JsonDict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1 << 20


def _limited(memory_mib: int = 0, quota: int = 0) -> Callable[[JsonDict], None]:
    def change(config: JsonDict) -> None:
        config["linux"]["resources"] = {
            "memory": {"limit": memory_mib * MIB},
            "cpu": {"quota": quota, "period": 100000},
        }

    return change


def test_memory_and_vcpus(sh) -> None:
    script = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max; nproc; awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo"
    memory, quota, period, processors, total_mib = map(int, sh(script, change=_limited(200, 150000)).stdout.split())
    assert (memory, quota, period, processors) == (200 * MIB, 150000, 100000, 2)
    assert 200 <= total_mib < 384


def test_two_processors_go_on_while_the_kernel_changes_its_code(sh) -> None:
    """A quota that comes and goes switches branches in the scheduler's code. QEMU 7.2's emulator with a thread a vCPU panics before 4000 rounds,
    so this shows that the other way works; tests/unit/test_qemu.py holds which way is taken."""

    def change(config: JsonDict) -> None:
        _limited(200, 150000)(config)
        cgroup = next(mount for mount in config["mounts"] if mount["destination"] == "/sys/fs/cgroup")
        cgroup["options"].remove("ro")

    script = (
        "cd /sys/fs/cgroup; sh -c 'while :; do :; done' & i=0; "
        'while [ $i -lt 300 ]; do echo "50000 100000" > cpu.max; echo max > cpu.max; i=$((i+1)); done; kill $!; echo $i'
    )
    assert sh(script, change=change).stdout == b"300\n"


def test_the_container_can_use_its_limit_and_not_more(sh) -> None:
    script = "dd if=/dev/zero of=/dev/null bs=%dM count=1 2>/dev/null; echo $?"  # its buffer is memory of the container
    assert sh(script % 80, change=_limited(100)).stdout.split()[-1] == b"0"
    out = sh(script % 120, code=None, change=_limited(100))
    assert out.returncode == 137 or out.stdout.split()[-1] != b"0"


@pytest.mark.parametrize("resources", [{"memory": {"limit": 100 * MIB}}])
def test_creates_at_once_that_miss_a_template_build_it_once(
    cli: Cli, bundle: Callable[..., Path], tmp_path: Path, resources: JsonDict
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    shared = os.environ.get("RUNDCTL_HOME", "/var/lib/rundctl")
    subprocess.run(["cp", "-a", f"{shared}/kernels", f"{shared}/digests.json", home], check=True)
    where = bundle("/bin/true", change=lambda config: config["linux"].update(resources=resources))
    environment = {**os.environ, "RUNDCTL_HOME": str(home)}
    runs = [cli.popen("run", "--bundle", str(where), f"b{number}", env=environment) for number in range(4)]
    assert [run.wait(DEADLINE_S) for run in runs] == [0] * 4
    listed = subprocess.run([RUNDCTL, "template", "list"], env=environment, capture_output=True, check=True)
    assert len(listed.stdout.splitlines()) == 2  # a heading and one template
    assert json.loads((next((home / "templates").glob("*/manifest.json"))).read_text())


def test_the_largest_vm(sh) -> None:
    script = "awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo"
    assert 6000 < int(sh(script, change=_limited(8192 - 64)).stdout) <= 8192
