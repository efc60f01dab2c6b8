"""Lifecycle, storage, processors and identity of containers whose VMs run under KVM."""

from __future__ import annotations

import shutil
import stat
import time
from typing import TYPE_CHECKING, Any

import pytest

from rundctl.oci import options

from ..system.conftest import eventually
from .conftest import qemu_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..system.conftest import Cli

# What is on QEMU's command line for each way of the root file system into the guest.
DEVICES = {"9p": "virtio-9p", "erofs": "virtio-pmem", "blk": "virtio-blk", "virtiofs": "id=share0"}
CLOCK_ERROR_S = 1  # busybox tells whole seconds
CLONES = 3


@pytest.mark.parametrize("lower", DEVICES)
def test_lifecycle(cli: Cli, bundle: Callable[..., Path], rootfs: Path, tmp_path: Path, lower: str) -> None:
    def change(config: dict[str, Any]) -> None:
        config["annotations"] = {options.LOWER: lower}
        if lower in ("erofs", "blk"):
            config["annotations"][options.IMMUTABLE] = str(rootfs)

    script = "cat /etc/hosts; echo own >/etc/hosts; cat /etc/hosts; trap 'exit 5' TERM; while :; do sleep 0.1; done"
    out = tmp_path / "out"
    with out.open("wb") as stdout:
        cli.create("c", bundle("/bin/sh", "-c", script, change=change), stdout=stdout)
    assert cli.status("c") == "created"
    assert DEVICES[lower] in " ".join(qemu_of(cli, "c").cmdline())
    cli("start", "c")
    assert cli.status("c") == "running"
    eventually(lambda: out.read_bytes() == b"127.0.0.1 localhost\nown\n", out.read_text)
    cli("kill", "c", "TERM")
    cli.wait_status("c", "stopped")
    assert "code=5" in (cli.root / "c/exit").read_text()
    cli("delete", "c")
    assert (rootfs / "etc/hosts").read_text() == "127.0.0.1 localhost\n"


def test_run(sh: Callable[..., Any]) -> None:
    done = sh("echo out; echo err >&2; exit 7", code=7)
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")


def test_volumes(sh: Callable[..., Any], tmp_path: Path) -> None:
    shared, fixed, file = tmp_path / "shared", tmp_path / "fixed", tmp_path / "file"
    for directory in (shared, fixed):
        directory.mkdir()
        (directory / "name").write_text(f"{directory.name}\n")
    file.write_text("file\n")

    def change(config: dict[str, Any]) -> None:
        config["mounts"] += [
            {"destination": "/shared", "type": "bind", "source": str(shared), "options": ["bind", "rw"]},
            {"destination": "/fixed", "type": "bind", "source": str(fixed), "options": ["bind", "ro"]},
            {"destination": "/etc/file", "type": "bind", "source": str(file), "options": ["bind", "ro"]},
        ]

    script = "cat /shared/name /fixed/name /etc/file; echo guest >/shared/made; echo no >/fixed/made || echo refused"
    assert sh(script, change=change).stdout == b"shared\nfixed\nfile\nrefused\n"
    assert (shared / "made").read_text() == "guest\n"
    assert not (fixed / "made").exists()


@pytest.mark.parametrize("lower", ["9p", "virtiofs"])
def test_a_persistent_root(sh: Callable[..., Any], rootfs: Path, tmp_path: Path, lower: str) -> None:
    own = tmp_path / "own"
    shutil.copytree(rootfs, own, symlinks=True)

    def change(config: dict[str, Any]) -> None:
        config["root"] = {"path": str(own), "readonly": False}
        config["annotations"] = {options.ROOTFS: "persistent", options.LOWER: lower}

    sh("echo one >/root/file; mkdir /root/directory; chmod 2750 /root/directory", change=change)
    assert (own / "root/file").read_text() == "one\n"
    assert stat.S_IMODE((own / "root/directory").stat().st_mode) == 0o2750
    (own / "root/file").write_text("of the host\n")
    assert sh("cat /root/file", change=change).stdout == b"of the host\n"


def test_two_processors(sh: Callable[..., Any], configure: Callable[..., None]) -> None:
    """Each of them works, and they see one another's work in the right order."""
    configure(vcpus=2)
    script = """
        nproc
        for cpu in 0 1; do (i=0; while [ $i -lt 3000 ]; do i=$((i + 1)); done; echo $i >/tmp/$cpu) & taskset -p $((cpu + 1)) $! >/dev/null; done
        wait
        cat /tmp/0 /tmp/1
        grep -c '^cpu[01] [1-9]' /proc/stat
    """
    assert sh(script).stdout == b"2\n3000\n3000\n2\n"


def test_clones_are_told_apart(cli: Cli, bundle: Callable[..., Path], tmp_path: Path) -> None:
    """Three of one template, saved once: entropy, names, and all of them know the time."""
    script = "hostname; cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | md5sum; date +%s; sleep 1000"

    def change(config: dict[str, Any]) -> None:
        del config["hostname"]

    said = []
    for number in range(CLONES):
        out = tmp_path / f"out{number}"
        with out.open("wb") as stdout:
            cli.create(f"c{number}", bundle("/bin/sh", "-c", script, change=change), stdout=stdout)
    for number in range(CLONES):
        out = tmp_path / f"out{number}"
        qemu_of(cli, f"c{number}")
        before = time.time()
        cli("start", f"c{number}")
        eventually(lambda out=out: len(out.read_text().splitlines()) == 5, out.read_text)
        *drawn, told = out.read_text().splitlines()
        assert int(before) - CLOCK_ERROR_S <= int(told) <= time.time() + CLOCK_ERROR_S
        said += drawn
    assert len(set(said)) == 4 * CLONES, said
    assert {f"c{number}" for number in range(CLONES)} < set(said)
