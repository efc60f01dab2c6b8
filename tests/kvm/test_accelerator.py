"""KVM that is busy, out of reach, or gone, after a template was made with it: one line names it, what is emulated says so, and KVM is taken again when it is back."""

from __future__ import annotations

import os
import stat
import struct
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
_MSR = "/dev/cpu/0/msr"
_EFER, _SVME = 0xC0000080, 0x1000
_EMULATED = "rundctl: warning: emulated, so many times slower: /dev/kvm: "


def _efer(change: Callable[[int], int]) -> None:
    fd = os.open(_MSR, os.O_RDWR)
    try:
        (value,) = struct.unpack("<Q", os.pread(fd, 8, _EFER))
        os.pwrite(fd, struct.pack("<Q", change(value)), _EFER)
    finally:
        os.close(fd)


@contextmanager
def _busy() -> Iterator[None]:
    """The processor's virtualisation is on, and it was not KVM that put it on: so another hypervisor has it (svm_hardware_enable of the kernel)."""
    _efer(lambda value: value | _SVME)
    try:
        yield
    finally:
        _efer(lambda value: value & ~_SVME)


@contextmanager
def _without_driver() -> Iterator[None]:
    """The node is there, and nothing behind it, as when the module was removed: a number of misc devices that nobody has."""
    away = KVM.with_name("kvm.away")
    KVM.rename(away)
    os.mknod(KVM, 0o600 | stat.S_IFCHR, os.makedev(10, 199))
    try:
        yield
    finally:
        away.replace(KVM)


@contextmanager
def _gone() -> Iterator[None]:
    away = KVM.with_name("kvm.away")
    KVM.rename(away)
    try:
        yield
    finally:
        away.rename(KVM)


@pytest.fixture
def works(cli: Cli, template: str) -> Iterator[None]:
    """Before and after: whoever asks is told so at once, because the node is another."""
    del template
    KVM.chmod(0o600)
    assert "kvm: a guest booted with it" in _finding(cli)
    yield
    KVM.chmod(0o600)
    assert "kvm: a guest booted with it" in _finding(cli)


def _finding(cli: Cli, code: int = 0, env: dict[str, str] | None = None) -> str:
    """What doctor says first of the accelerator; the rest is not of this host."""
    said = cli("doctor", code=code, env=env).stdout.decode().splitlines()
    return next(line for line in said if line.split()[1] == "accelerator")


def _says_it_is_emulated(cli: Cli, bundle: Path, *before: str) -> str:
    """The first words of a start, which then would take minutes to build its template here, and is not waited for."""
    argv = [*before, *cli.argv("run", "--bundle", str(bundle), "emulated")]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as started:
        assert started.stderr is not None
        line = started.stderr.readline()
        started.terminate()
        started.wait(DEADLINE_S)
    return line


@pytest.mark.usefixtures("works")
def test_another_hypervisor_has_it(cli: Cli, bundle: Callable[..., Path], tmp_path: Path) -> None:
    where = bundle("/bin/echo", "hello")
    insisting = {**os.environ, "RUNDCTL_CONFIG": str(tmp_path / "kvm.toml")}
    (tmp_path / "kvm.toml").write_text('accelerator = "kvm"\n')
    cli("run", "--bundle", str(where), "c")  # by KVM, which was as it should be when it was last asked
    with _busy():
        failed = cli("run", "--bundle", str(where), "c", code=1)
        assert failed.stderr.decode() == (
            "rundctl: start the VM by KVM: /dev/kvm: device or resource busy (another hypervisor has the processor's virtualisation:"
            " end it, or remove its module; the next start is emulated)\n"
        )
        assert "tcg (emulation): /dev/kvm: device or resource busy" in _finding(cli)
        assert _says_it_is_emulated(cli, where).startswith(f"{_EMULATED}device or resource busy (another hypervisor ")
        refused = cli("run", "--bundle", str(where), "c", code=1, env=insisting)
        assert refused.stderr.decode().startswith('rundctl: accelerator = "kvm": /dev/kvm: device or resource busy (')
        assert len(refused.stderr.splitlines()) == 1
        assert _finding(cli, 1, insisting).startswith('fail accelerator accelerator = "kvm": /dev/kvm: device or')
    KVM.chmod(0o600)  # the minute for which a refusal is believed is over
    done = cli("run", "--bundle", str(where), "c")
    assert (done.stdout, done.stderr) == (b"hello\n", b"")


@pytest.mark.usefixtures("works")
def test_it_may_not_be_opened(cli: Cli, bundle: Callable[..., Path]) -> None:
    """By root without the right to open what it may not: as in a container."""
    KVM.chmod(0)
    try:
        powerless = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all")
        line = _says_it_is_emulated(cli, bundle("/bin/true"), *powerless)
    finally:
        KVM.chmod(0o600)
    assert line.startswith(f"{_EMULATED}permission denied (")


@pytest.mark.usefixtures("works")
def test_nothing_is_behind_it(cli: Cli, bundle: Callable[..., Path]) -> None:
    with _without_driver():
        line = _says_it_is_emulated(cli, bundle("/bin/true"))
        assert line.startswith(f"{_EMULATED}no such device (modprobe kvm_intel or kvm_amd; ")
        assert "no such device" in _finding(cli)


@pytest.mark.usefixtures("works")
def test_it_is_gone(cli: Cli, tmp_path: Path) -> None:
    """As on a host that never had it: nothing is said but by doctor, and by who insists."""
    (tmp_path / "kvm.toml").write_text('accelerator = "kvm"\n')
    insisting = {**os.environ, "RUNDCTL_CONFIG": str(tmp_path / "kvm.toml")}
    with _gone():
        assert _finding(cli).startswith("warn accelerator tcg (emulation): /dev/kvm is missing (modprobe ")
        refused = cli("template", "build", code=1, env=insisting)
    assert refused.stderr.decode().startswith('rundctl: accelerator = "kvm": /dev/kvm is missing (modprobe ')


@pytest.mark.usefixtures("works")
def test_what_runs_goes_on(cli: Cli, bundle: Callable[..., Path]) -> None:
    """Whatever becomes of the node: KVM knows its VMs by descriptors."""
    cli.create("c", bundle("/bin/sh", "-c", "while :; do sleep 1; done"))
    cli("start", "c")
    qemu = qemu_of(cli, "c")
    with _gone():
        cli("pause", "c")
        cli("resume", "c")
        assert cli.status("c") == "running"
        assert qemu.is_running()
        cli("delete", "--force", "c")
