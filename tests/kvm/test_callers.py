"""podman, and the pool of control groups of version 2, with VMs under KVM."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..system import podman_rig
from ..system.test_pool import PoolOf, cgroups_of
from .conftest import qemu_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..system.conftest import Cli

SLEEP = ("/bin/sleep", "1000")


def test_podman(tmp_path: Path, rootfs: Path, template: str) -> None:
    script = "cat; echo err >&2; exit 3"
    with podman_rig.with_busybox(tmp_path, rootfs) as podman:
        done = podman.run("--rm", "-i", "localhost/bb", "/bin/sh", "-c", script, code=3, stdin=b"in\n")
        assert (done.stdout, done.stderr) == (b"in\n", b"err\n")


def test_the_pool(cli: Cli, bundle: Callable[..., Path]) -> None:
    """A slot is leased, is the VM's cgroup, and is given back."""
    pool = PoolOf(cli)
    pool("fill", "--size", "2")
    limit = {"pids": {"limit": 100}}
    cli.create("c", bundle(*SLEEP, change=pool.asks(lambda config: config["linux"].update(resources=limit))))
    qemu = qemu_of(cli, "c")
    assert (pool.count("free"), pool.count("leased")) == (1, 1)
    (cgroup,) = cgroups_of(qemu.pid)
    assert cgroup.startswith(f"{pool.parent}/")
    cli("start", "c")
    cli("delete", "--force", "c")
    pool.is_as_new(2)
