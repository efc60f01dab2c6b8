"""KVM that is out of reach after a template was made with it: what is emulated says so. More of it: test_accelerator_long.py."""

from __future__ import annotations

import os
import stat
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ..system.conftest import DEADLINE_S
from .conftest import qemu_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..system.conftest import Cli

KVM = Path("/dev/kvm")
EMULATED = "rundctl: warning: emulated, so many times slower: /dev/kvm: "


@contextmanager
def without_driver() -> Iterator[None]:
    """The node is there, and nothing behind it, as when the module was removed: a number of misc devices that nobody has."""
    away = KVM.with_name("kvm.away")
    KVM.rename(away)
    os.mknod(KVM, 0o600 | stat.S_IFCHR, os.makedev(10, 199))
    try:
        yield
    finally:
        away.replace(KVM)


@contextmanager
def gone() -> Iterator[None]:
    away = KVM.with_name("kvm.away")
    KVM.rename(away)
    try:
        yield
    finally:
        away.rename(KVM)


@pytest.fixture
def node() -> Iterator[None]:
    """Before and after the node is another, so that whoever asks asks anew."""
    KVM.chmod(0o600)
    yield
    KVM.chmod(0o600)


def says_it_is_emulated(cli: Cli, bundle: Path, *before: str) -> str:
    """The first words of a start, which then would take minutes to build its template here, and is not waited for."""
    argv = [*before, *cli.argv("run", "--bundle", str(bundle), "emulated")]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as started:
        assert started.stderr is not None
        line = started.stderr.readline()
        started.terminate()
        started.wait(DEADLINE_S)
    return line


@pytest.mark.usefixtures("node")
def test_it_may_not_be_opened(cli: Cli, bundle: Callable[..., Path]) -> None:
    """By root without the right to open what it may not: as in a container."""
    KVM.chmod(0)
    try:
        powerless = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all")
        line = says_it_is_emulated(cli, bundle("/bin/true"), *powerless)
    finally:
        KVM.chmod(0o600)
    assert line.startswith(f"{EMULATED}permission denied (")


@pytest.mark.usefixtures("node")
def test_nothing_is_behind_it(cli: Cli, bundle: Callable[..., Path]) -> None:
    with without_driver():
        line = says_it_is_emulated(cli, bundle("/bin/true"))
        assert line.startswith(f"{EMULATED}no such device (modprobe kvm_intel or kvm_amd; ")


@pytest.mark.usefixtures("node")
def test_what_runs_goes_on(cli: Cli, bundle: Callable[..., Path]) -> None:
    """Whatever becomes of the node: KVM knows its VMs by descriptors."""
    cli.create("c", bundle("/bin/sh", "-c", "while :; do sleep 1; done"))
    cli("start", "c")
    qemu = qemu_of(cli, "c")
    with gone():
        cli("pause", "c")
        cli("resume", "c")
        assert cli.status("c") == "running"
        assert qemu.is_running()
        cli("delete", "--force", "c")
