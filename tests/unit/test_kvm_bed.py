"""Hosts on which the machine with KVM cannot be (tests/kvm_bed.py): each says why. What happens to one that runs is in tests/kvm/test_bed.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import kvm_bed

MORE_MIB = 1 << 30  # than any host has


def test_this_host_can_have_one() -> None:
    assert kvm_bed.missing() == ""


def test_a_host_without_qemu() -> None:
    assert kvm_bed.missing("qemu-system-none") == "qemu-system-none is missing: apt-get install qemu-system-x86"


def test_a_qemu_that_does_not_emulate_what_is_needed() -> None:
    """Intel's VMX is emulated by none."""
    said = kvm_bed.missing(features="+vmx")
    assert "does not emulate a processor with +vmx" in said
    assert "TCG doesn't support requested feature" in said


def test_a_host_without_the_memory(tmp_path: Path) -> None:
    """Before QEMU starts: else the kernel would kill it, or another, in the middle."""
    bed = kvm_bed.Bed(["true"], tmp_path, kvm_bed.Machine(memory_mib=MORE_MIB))
    with pytest.raises(kvm_bed.BedError, match=rf"needs {MORE_MIB} MiB .* this host has \d+ MiB"), bed:
        pass


def test_a_host_without_room_for_the_disk(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    with pytest.raises(kvm_bed.BedError, match=rf"{image}: (No space left on device|File too large)"):
        kvm_bed.make_disk(image, MORE_MIB)
