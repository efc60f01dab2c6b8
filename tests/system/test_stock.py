"""The short way still works: Debian's kernel and the host's QEMU, which those have who build neither (`make demo`)."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rundctl.engine import settings
from rundctl.engine.rootfs import combinations
from rundctl.guest import kernel
from rundctl.oci.options import LOWER
from rundctl.vmm import binary

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Cli, JsonDict

pytestmark = pytest.mark.vm


@pytest.fixture(autouse=True)
def stock(stock_kernel: str, configure: Callable[..., None]) -> str:
    """All containers of this suite are stock ones."""
    configure(kernel=stock_kernel, qemu=binary.SYSTEM)
    return stock_kernel


def _qemu_of(cli: Cli, name: str) -> int:
    shim = int(cli.state(name)["pid"])
    (qemu,) = Path(f"/proc/{shim}/task/{shim}/children").read_text().split()
    return int(qemu)


def test_kernel_and_qemu_are_what_was_asked_for(cli: Cli, sh, bundle, stock: str) -> None:
    assert sh("uname -r").stdout.decode() == f"{stock}\n"
    cli.create("which", bundle("/bin/sleep", "1000"))
    assert os.readlink(f"/proc/{_qemu_of(cli, 'which')}/exe") == os.path.realpath(
        binary.find(binary.Choice("/nowhere", binary.SYSTEM))
    )


def test_a_disk_needs_no_other_kernel(sh, stock: str) -> None:
    """The transports of this kernel are those that the table of combinations says."""
    done = sh("echo x > /new; cat /new", change=lambda config: config.update(annotations={LOWER: "blk"}))
    assert done.stdout == b"x\n"
    able = kernel.Kernel(f"{settings.load().home}/kernels/{stock}").able()
    assert frozenset(able) == combinations.KERNELS["Debian's"]


def test_its_template_names_it(cli: Cli, stock: str) -> None:
    key = cli("template", "build").stdout.decode().strip()
    assert json.loads(cli("template", "show", key).stdout)["kernel"] == stock


def test_output_and_exit_code(sh) -> None:
    done = sh("echo out; echo err >&2; exit 42", code=42)
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")


def test_stdin(sh) -> None:
    data = os.urandom(1 << 20)
    assert sh("cat", stdin=data).stdout == data


def test_verbs_in_order(cli: Cli, bundle) -> None:
    cli.create("verbs", bundle("/bin/sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done"))
    assert cli.status("verbs") == "created"
    cli("start", "verbs")
    assert cli.status("verbs") == "running"
    cli("kill", "verbs", "KILL")
    cli.wait_status("verbs", "stopped")
    cli("delete", "verbs")
    cli("state", "verbs", code=1)


def test_what_a_guest_is_asked(cli: Cli, bundle) -> None:
    cli.create("asked", bundle("/bin/sleep", "1000"))
    cli("start", "asked")
    for verb, status in (("pause", "paused"), ("resume", "running")):
        cli(verb, "asked")
        assert cli.status("asked") == status
    data = json.loads(cli("events", "--stats", "asked").stdout)["data"]
    assert data["memory"]["usage"]["usage"] > 0
    assert data["pids"]["current"] == 1
    assert data["cpu"]["usage"]["total"] > 0
    assert [line.split()[1] for line in cli("ps", "asked").stdout.splitlines()] == [b"PID", b"1"]


def test_a_bind_mount(sh, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "in").write_text("from the host\n")

    def change(config: JsonDict) -> None:
        for name, *options in (("rw",), ("ro", "ro")):
            config["mounts"].append(
                {"destination": f"/mnt/{name}", "type": "bind", "source": str(shared), "options": ["rbind", *options]}
            )

    script = "cat /mnt/ro/in; echo from the guest >/mnt/rw/out; echo no >/mnt/ro/no || echo refused"
    done = sh(script, change=change)
    assert done.stdout == b"from the host\nrefused\n"
    assert (shared / "out").read_text() == "from the guest\n"
    assert sorted(path.name for path in shared.iterdir()) == ["in", "out"]


def test_a_cold_boot(cli: Cli, bundle, stock: str) -> None:
    where = str(bundle("/bin/uname", "-r"))
    assert cli("run", "--template", "off", "--bundle", where, "cold").stdout.decode() == f"{stock}\n"


def test_limits_are_the_guest_s_own(sh) -> None:
    def change(config: JsonDict) -> None:
        config["linux"]["resources"] = {"pids": {"limit": 5}, "memory": {"limit": 64 << 20}}

    out = sh("cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/memory.max", change=change).stdout.decode()
    assert re.split(r"\s+", out.strip()) == ["5", str(64 << 20)]
