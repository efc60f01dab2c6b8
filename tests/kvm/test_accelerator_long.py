"""KVM that is busy, out of reach, or gone, after a template was made with it: one line names it, doctor tells it, and KVM is taken again when it is back."""

from __future__ import annotations

import os
import struct
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .test_accelerator import EMULATED, KVM, gone, says_it_is_emulated, without_driver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..system.conftest import Cli

_MSR = "/dev/cpu/0/msr"
_EFER, _SVME = 0xC0000080, 0x1000


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
        assert says_it_is_emulated(cli, where).startswith(f"{EMULATED}device or resource busy (another hypervisor ")
        refused = cli("run", "--bundle", str(where), "c", code=1, env=insisting)
        assert refused.stderr.decode().startswith('rundctl: accelerator = "kvm": /dev/kvm: device or resource busy (')
        assert len(refused.stderr.splitlines()) == 1
        assert _finding(cli, 1, insisting).startswith('fail accelerator accelerator = "kvm": /dev/kvm: device or')
    KVM.chmod(0o600)  # the minute for which a refusal is believed is over
    done = cli("run", "--bundle", str(where), "c")
    assert (done.stdout, done.stderr) == (b"hello\n", b"")


@pytest.mark.usefixtures("works")
def test_nothing_is_behind_it(cli: Cli) -> None:
    with without_driver():
        assert "no such device" in _finding(cli)


@pytest.mark.usefixtures("works")
def test_it_is_gone(cli: Cli, tmp_path: Path) -> None:
    """As on a host that never had it: nothing is said but by doctor, and by who insists."""
    (tmp_path / "kvm.toml").write_text('accelerator = "kvm"\n')
    insisting = {**os.environ, "RUNDCTL_CONFIG": str(tmp_path / "kvm.toml")}
    with gone():
        assert _finding(cli).startswith("warn accelerator tcg (emulation): /dev/kvm is missing (modprobe ")
        refused = cli("template", "build", code=1, env=insisting)
    assert refused.stderr.decode().startswith('rundctl: accelerator = "kvm": /dev/kvm is missing (modprobe ')
